"""The exceptions of the library: one per kind of mistake a user can make."""


class NormbtError(Exception):
    """Base of every error that is the user's to mend; the command line prints it and exits with 2."""


class ConfigError(NormbtError):
    """A setting is unknown, out of range, or does not fit another setting."""


class DataError(NormbtError):
    """A preference file is missing, unreadable, or holds no usable pair."""


class ModelError(NormbtError):
    """A model has no scoring head that can be served, or its head failed a check."""


class StateError(NormbtError):
    """A checkpoint does not belong to this run, or is incomplete."""
