"""Result files to pictures. Nothing here loads a model."""

from normbt.report.demo import plot_demo

__all__ = ["plot_demo"]
