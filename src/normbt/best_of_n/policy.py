"""Candidates from a causal language model, through Transformers' `generate`."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from normbt.best_of_n.candidates import Answer, Prompt
from normbt.errors import ConfigError, ModelError
from normbt.loading import max_positions

Template = Literal["auto", "chat", "plain"]


class PolicySampler:
    """Samples answers in batches of prompts of similar length, padded on the left.

    Args:
        model: folder or Hub id of a causal language model.
        template: ``"auto"``: prompts through the tokenizer's chat template if it has one; ``"chat"``: always;
            ``"plain"``: as they are.
        temperature: of the sampling; above 0.
        top_p: share of the probability that is sampled from.
        max_new_tokens: most tokens of an answer.
        batch_sequences: answers made at once.
        dtype: number format of the weights, or ``"auto"``.
        device: where to run; None for the first GPU, or the CPU.
        trust_remote_code: run code of the checkpoint.

    Raises:
        ModelError: the model cannot be loaded, or has no chat template where one is needed.
    """

    prompts_per_part = 8

    def __init__(
        self,
        model: str,
        *,
        template: Template = "auto",
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        batch_sequences: int = 32,
        dtype: str = "auto",
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.settings = {
            "policy": model,
            "generation_template": template,
            "temperature": temperature,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
            "batch_sequences": batch_sequences,
            "dtype": dtype,
        }
        self.batch_sequences, self.max_new_tokens = batch_sequences, max_new_tokens
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
            loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"Cannot load a causal language model from '{model}': {error}") from error
        self.model = loaded.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))).eval()
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        self.chat = template == "chat" or (template == "auto" and bool(self.tokenizer.chat_template))
        if self.chat and not self.tokenizer.chat_template:
            raise ModelError(f"The tokenizer of '{model}' has no chat template: use --generation_template plain.")
        self.eos = _ids(self.model.generation_config.eos_token_id) | _ids(self.tokenizer.eos_token_id)

    def describe(self) -> dict[str, Any]:
        """Every setting that decides the answers, by name."""
        return {**self.settings, "device": self.model.device.type}

    def __call__(self, prompts: Sequence[Prompt], samples: int, *, seed: int) -> list[list[Answer]]:
        """The answers to each prompt; the same seed, prompts and machine give the same answers."""
        ids = [self._encode(prompt) for prompt in prompts]
        self._check_lengths(prompts, ids)
        rows = sorted((place for place in range(len(prompts)) for _ in range(samples)), key=lambda at: -len(ids[at]))
        answers: list[list[Answer]] = [[] for _ in prompts]
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            for start in range(0, len(rows), self.batch_sequences):
                batch = rows[start : start + self.batch_sequences]
                for place, answer in zip(batch, self._generate([ids[place] for place in batch]), strict=True):
                    answers[place].append(answer)
        return answers

    def _generate(self, ids: Sequence[list[int]]) -> list[Answer]:
        inputs = self.tokenizer.pad({"input_ids": list(ids)}, padding_side="left", return_tensors="pt")
        try:
            output = self.model.generate(
                **inputs.to(self.model.device),
                do_sample=True,
                temperature=self.settings["temperature"],
                top_p=self.settings["top_p"],
                top_k=0,
                max_new_tokens=self.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{len(ids)} answers at once do not fit the memory of {self.model.device}. Lower batch_sequences."
            ) from error
        return [self._answer(row) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]

    def _answer(self, new: list[int]) -> Answer:
        end = next((place for place, token in enumerate(new) if token in self.eos), None)
        kept = new if end is None else new[: end + 1]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return Answer(text, finished=end is not None, tokens=len(kept))

    def _encode(self, prompt: Prompt) -> list[int]:
        messages = prompt.prompt if isinstance(prompt.prompt, list) else [{"role": "user", "content": prompt.prompt}]
        if self.chat:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if isinstance(prompt.prompt, list):
            raise ModelError("The prompts are conversations, which need a chat template: use one, or text prompts.")
        ids = self.tokenizer(prompt.prompt)["input_ids"]
        return ids[:-1] if ids and ids[-1] in self.eos else ids  # some tokenizers close every text

    def _check_lengths(self, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> None:
        positions = max_positions(self.model)
        for prompt, tokens in zip(prompts, ids, strict=True):
            if positions is not None and len(tokens) + self.max_new_tokens > positions:
                raise ConfigError(
                    f"Prompt {prompt.identity} has {len(tokens)} tokens, and with max_new_tokens={self.max_new_tokens} "
                    f"more than the {positions} the model reads. Lower max_new_tokens, or leave the prompt out."
                )


def _ids(tokens: int | list[int] | None) -> set[int]:
    return set() if tokens is None else {tokens} if isinstance(tokens, int) else set(tokens)
