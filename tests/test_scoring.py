import logging
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import normbt.attention
import normbt.scoring
from normbt.errors import ConfigError, DataError, ModelError, NormbtError
from normbt.head import capture_hidden
from normbt.loading import load_reward_model, max_positions
from normbt.processes import ALONE, Processes, running_processes
from normbt.scoring import score, score_pairs
from tiny import BOS, DECODERS, ENCODERS, EOS, PAD, VOCABULARY, padded, random_rows, tiny_model

LENGTHS = (3, 17, 5, 40, 4, 4, 29, 11)


def one_by_one(model, rows):
    """Slow twin: every row alone, so that nothing is padded."""
    rewards, hidden = [], []
    with torch.no_grad(), capture_hidden(model) as captured:
        for row in rows:
            model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long))
            rewards.append(captured.rewards.item())
            hidden.append(captured.hidden[0].clone())
    return np.array(rewards, dtype=np.float32), torch.stack(hidden)


def lively(kind):
    """A tiny model whose rewards differ a lot between rows; as they are initialised, encoders hardly read the words."""
    model = tiny_model(kind)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_scores_do_not_depend_on_the_batch(kind):
    model, rows = lively(kind), random_rows(LENGTHS)
    rewards, hidden = one_by_one(model, rows)
    assert np.ptp(rewards) > 0.1
    for batch_tokens in (1, 60, 10_000):
        scores = score(model, rows, batch_tokens=batch_tokens, keep_hidden=True)
        np.testing.assert_allclose(scores.rewards, rewards, atol=1e-5)
        torch.testing.assert_close(scores.hidden, hidden, atol=1e-5, rtol=1e-5)
        assert scores.rewards.dtype == np.float32


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(2, 50), min_size=1, max_size=12), batch_tokens=st.integers(1, 300))
def test_any_rows_in_any_batches_score_the_same(lengths, batch_tokens):
    model, rows = tiny_model("gpt2"), random_rows(lengths)
    np.testing.assert_allclose(
        score(model, rows, batch_tokens=batch_tokens).rewards, one_by_one(model, rows)[0], atol=1e-5
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_pad_token_that_is_eos_changes_nothing(kind, caplog):
    model, rows = tiny_model(kind), random_rows(LENGTHS)
    expected = score(model, rows).rewards
    model.config.pad_token_id = EOS
    np.testing.assert_allclose(score(model, rows).rewards, expected, atol=1e-5)
    assert "plain Transformers" in caplog.text  # would read another token: the user is told


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_left_padding_gives_the_same_scores(kind):
    """Only where positions are relative or the mask hides them; BERT's are absolute, so its rows stay on the right."""
    model, rows = tiny_model(kind), random_rows(LENGTHS)
    side = "left" if kind == "llama" else "right"
    with torch.no_grad(), capture_hidden(model) as captured:
        model(**padded(rows, side=side))
    np.testing.assert_allclose(score(model, rows).rewards, captured.rewards.numpy(), atol=1e-5)


def test_each_distinct_sequence_goes_through_the_model_once():
    model, rows = tiny_model(), random_rows((9, 5, 9))
    seen = []
    with_duplicates = [rows[0], rows[1], rows[0], tuple(rows[2]), rows[1], rows[0]]
    handle = model.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    progress = []
    scores = score(model, with_duplicates, batch_tokens=9, pack=False, keep_hidden=True, progress=progress.append)
    handle.remove()
    assert sum(seen) == scores.forwarded == 3
    alone = score(model, rows, batch_tokens=9, pack=False).rewards
    np.testing.assert_array_equal(scores.rewards, alone[[0, 1, 0, 2, 1, 0]])
    assert scores.hidden.shape == (6, model.config.hidden_size)
    assert progress == sorted(progress)
    assert progress[-1] == 6


def test_batches_hold_the_token_budget_and_start_with_the_longest():
    model, rows = tiny_model(), random_rows(LENGTHS)
    shapes = []
    model.model.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    score(model, rows, batch_tokens=34, pack=False)
    assert shapes == [(1, 40), (1, 29), (2, 17), (4, 5)]


def test_answers_to_one_prompt_share_it():
    model, generator = tiny_model(), torch.Generator().manual_seed(0)
    words = torch.randint(5, VOCABULARY, (2, 20), generator=generator).tolist()
    answers = torch.randint(5, VOCABULARY, (2, 6, 4), generator=generator).tolist()
    rows = [[BOS, *prompt, *answer] for prompt, of_prompt in zip(words, answers, strict=True) for answer in of_prompt]
    padded = score(model, rows, pack=False)

    shapes, progress = [], []
    model.model.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    packed = score(model, [*rows, rows[0]], batch_tokens=10_000, keep_hidden=True, progress=progress.append)
    assert packed.batching == "packed"
    # Three couples for each prompt, each with the prompt once; chance can make answers begin alike.
    assert shapes[-1][1] <= 2 * 3 * (21 + 4 + 4)
    assert progress == [13]
    np.testing.assert_allclose(packed.rewards[:12], padded.rewards, atol=1e-5)
    assert packed.rewards[12] == packed.rewards[0]


def test_three_by_three_pairs_of_a_prompt_take_less_than_a_third_of_their_tokens():
    """As in RM-Bench: three chosen answers, each against three rejected ones. 18 sequences, 6 of them distinct."""
    model, generator = tiny_model(), torch.Generator().manual_seed(0)
    sequences = []
    for _ in range(2):
        prompt = torch.randint(5, VOCABULARY, (20,), generator=generator).tolist()
        answers = torch.randint(5, VOCABULARY, (6, 10), generator=generator).tolist()
        sequences.append([[BOS, *prompt, *answer] for answer in answers])
    pairs = [(better, worse) for six in sequences for better in six[:3] for worse in six[3:]]
    chosen, rejected = zip(*pairs, strict=True)

    rows = []
    model.model.register_forward_pre_hook(lambda module, args: rows.append(args[0].numel()))
    scores = score_pairs(model, chosen, rejected, batch_tokens=10_000)
    asked, distinct = 2 * 18 * 31, 2 * 6 * 31
    assert asked == 3 * distinct
    # Two answers of a couple also share the prompt, so that the six take less than six times their length.
    assert rows[-1] <= 2 * 3 * (21 + 10 + 10) < distinct
    rewards, _ = one_by_one(model, [*chosen, *rejected])
    np.testing.assert_allclose(np.concatenate([scores.chosen, scores.rejected]), rewards, atol=1e-5)


def test_an_odd_sequence_is_scored_too():
    model, rows = tiny_model(), random_rows((9, 5, 7))
    packed, padded = score(model, rows), score(model, rows, pack=False)
    assert (packed.batching, padded.batching) == ("packed", "padded")
    np.testing.assert_allclose(packed.rewards, padded.rewards, atol=1e-5)


def test_packing_that_is_not_exact_is_not_used(monkeypatch, caplog):
    model, rows = tiny_model(), random_rows(LENGTHS)
    right = normbt.attention.attend

    def leaking(module, query, key, value, *args, **kwargs):
        return right(module, query, key, value + 0.1 * value.mean(dim=2, keepdim=True), *args, **kwargs)

    monkeypatch.setattr(normbt.attention, "attend", leaking)
    assert score(model, rows).batching == "padded"
    assert "DIFFER FROM" in caplog.text


def test_dropout_is_off_and_every_module_gets_its_mode_back():
    model, rows = tiny_model("bert", hidden_dropout_prob=0.5), random_rows(LENGTHS)
    expected = score(model, rows).rewards
    model.train()
    model.classifier.eval()
    np.testing.assert_array_equal(score(model, rows).rewards, expected)
    assert model.training
    assert not model.classifier.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_a_bf16_model_gives_float32_scores_of_a_float32_head():
    model, rows = tiny_model().to(torch.bfloat16), random_rows(LENGTHS)
    scores = score(model, rows, keep_hidden=True)
    assert scores.hidden.dtype == torch.float32
    expected = scores.hidden @ model.score.weight.float().T
    np.testing.assert_allclose(scores.rewards, expected[:, 0].detach().numpy(), atol=1e-6)


def test_rewards_that_are_not_numbers_are_counted_per_row():
    model, rows = tiny_model(), random_rows((5, 6, 7))
    with torch.no_grad():
        model.model.embed_tokens.weight[rows[1][2]] = float("nan")
    rows = [[token for token in row if token != rows[1][2]] if row is not rows[1] else row for row in rows]
    scores = score(model, [rows[1], rows[0], rows[1]])
    assert scores.non_finite == 2
    assert np.isfinite(scores.rewards).tolist() == [False, True, False]


def test_nothing_to_score_is_an_empty_answer_and_an_empty_sequence_an_error():
    model = tiny_model()
    assert score(model, []).rewards.shape == (0,)
    assert score_pairs(model, [], []).distance.shape == (0,)
    with pytest.raises(DataError, match="sequence 1 has no tokens"):
        score(model, [[BOS, EOS], []])
    with pytest.raises(ConfigError, match="batch_tokens must be at least 1, found 0"):
        score(model, [[BOS, EOS]], batch_tokens=0)


def test_a_model_without_pad_token_is_named_before_transformers_refuses_it():
    model = tiny_model("llama", pad_token_id=None)
    assert score(model, [[BOS, EOS]]).rewards.shape == (1,)
    with pytest.raises(ModelError, match=r"LlamaForSequenceClassification has no pad_token_id.*Set model.config"):
        score(model, random_rows((3, 4)))


def test_a_batch_that_does_not_fit_says_what_to_lower(monkeypatch):
    model = tiny_model()

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.model, "forward", full)
    with pytest.raises(ConfigError, match=r"2 x 4 tokens does not fit.*Lower batch_tokens \(now 99\)"):
        score(model, random_rows((4, 3)), batch_tokens=99, pack=False)


def test_a_model_that_reads_packed_rows_already_gives_the_same_scores():
    """As in a callback of a packed training run, whose model runs its last layer at the pooled tokens alone."""
    model, rows = lively("llama"), random_rows(LENGTHS)
    alone = score(model, rows).rewards
    with normbt.attention.pair_attention(model, pooled_only=True):
        np.testing.assert_allclose(score(model, rows).rewards, alone, atol=1e-6)
    np.testing.assert_allclose(score(model, rows).rewards, alone, atol=1e-6)


def test_pairs_get_both_rewards_the_distance_and_their_lengths(monkeypatch):
    monkeypatch.setattr(normbt.scoring, "PAIRS_IN_MEMORY", 2)
    model = tiny_model("llama")
    chosen, rejected = random_rows((5, 9, 30, 4, 8)), random_rows((7, 3, 12, 4, 21), seed=1)
    rejected[3] = chosen[3]
    progress = []
    scores = score_pairs(model, chosen, rejected, batch_tokens=64, progress=progress.append)
    chosen_rewards, chosen_hidden = one_by_one(model, chosen)
    rejected_rewards, rejected_hidden = one_by_one(model, rejected)
    np.testing.assert_allclose(scores.chosen, chosen_rewards, atol=1e-5)
    np.testing.assert_allclose(scores.rejected, rejected_rewards, atol=1e-5)
    np.testing.assert_allclose(scores.distance, (chosen_hidden - rejected_hidden).norm(dim=1).numpy(), atol=1e-5)
    assert scores.distance[3] == 0
    assert scores.chosen_tokens.tolist() == [5, 9, 30, 4, 8]
    assert scores.rejected_tokens.tolist() == [7, 3, 12, 4, 21]
    assert scores.non_finite == 0
    assert progress == sorted(progress)
    assert progress[-1] == 10
    with pytest.raises(ValueError, match="as many chosen as rejected"):
        score_pairs(model, chosen, rejected[:2])


# Several processes: here threads, each with a model of its own. With gloo: tests/test_evaluate.py.


def in_processes(count, work):
    """What ``work(processes)`` returns or raises in each of ``count`` processes."""
    barrier, board = Barrier(count), [None] * count

    def gather(index, part):
        board[index] = part
        barrier.wait(timeout=60)
        parts = list(board)
        barrier.wait(timeout=60)
        return parts

    def one(index):
        try:
            return work(Processes(index, count, None, barrier.wait, lambda part: gather(index, part)))
        except (NormbtError, OSError) as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("pack", [True, False])
def test_processes_share_the_batches_of_one_and_give_its_rewards(count, pack):
    rows = random_rows((3, 17, 5, 40, 4, 4, 29, 11, 3, 8, 21))
    rows.append(rows[1])  # scored once, in one of the processes
    models = [lively("llama") for _ in range(count)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    forwards = [[] for _ in models]

    def note(index, inputs):
        forwards[index].append(str(inputs["input_ids"].tolist()))

    for index, model in enumerate(models):
        model.register_forward_pre_hook(
            lambda _module, _args, inputs, index=index: note(index, inputs), with_kwargs=True
        )

    def run(processes):
        told = []
        settings = {"batch_tokens": 48, "keep_hidden": True, "progress": told.append, "processes": processes}
        return score(models[processes.index], rows, pack=pack, **settings), told

    shared = in_processes(count, run)
    by_process, forwards[0] = list(forwards), []
    alone = score(models[0], rows, batch_tokens=48, pack=pack, keep_hidden=True)
    assert alone.batching == ("packed" if pack else "padded")
    # The same batches, each in one process; the checks of the packing too are made by one.
    assert sorted(batch for batches in by_process for batch in batches) == sorted(forwards[0])
    assert min(map(len, by_process)) > 0
    for scores, told in shared:
        np.testing.assert_allclose(scores.rewards, alone.rewards, atol=1e-5)
        torch.testing.assert_close(scores.hidden, alone.hidden, atol=1e-5, rtol=1e-5)
        assert (scores.non_finite, scores.forwarded, scores.batching) == (0, 11, alone.batching)
        assert told == sorted(told)
        assert told[-1] == 12


def test_more_processes_than_batches_and_nothing_to_score():
    model, rows = tiny_model("llama"), random_rows((4, 6))
    alone = score(model, rows, pack=False).rewards
    models = [tiny_model("llama") for _ in range(3)]
    for other in models:
        other.load_state_dict(model.state_dict())
    for scores in in_processes(3, lambda own: score(models[own.index], rows, pack=False, processes=own)):
        np.testing.assert_allclose(scores.rewards, alone, atol=1e-5)
    for scores in in_processes(3, lambda own: score(models[own.index], [], processes=own)):
        assert scores.rewards.shape == (0,)


def test_an_error_of_one_process_ends_all(monkeypatch):
    models, rows = [tiny_model("llama") for _ in range(3)], random_rows((4, 3, 9))

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(models[1].model, "forward", full)
    errors = in_processes(3, lambda own: score(models[own.index], rows, batch_tokens=1, pack=False, processes=own))
    assert [type(error) for error in errors] == [ConfigError] * 3
    assert str(errors[1]).startswith("A batch of 1 x 4 tokens does not fit")
    assert str(errors[0]) == str(errors[2]) == f"Process 1 stopped: {errors[1]}"


def test_any_error_of_one_process_is_told_to_the_others():
    def main_fails(processes):
        return processes.main_only(lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))

    failed, told = in_processes(2, main_fails)
    assert isinstance(failed, OSError)
    assert type(told) is NormbtError
    assert str(told) == "Process 0 stopped: [Errno 28] No space left on device"
    assert in_processes(2, lambda processes: processes.main_only(lambda: processes.index)) == [0, 0]


def test_processes_that_cannot_be_connected_do_not_each_do_all(monkeypatch):
    assert running_processes() is ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", lambda **settings: SimpleNamespace(num_processes=1))
    with pytest.raises(ConfigError, match="started 2 processes, and Accelerate connects 1 of them"):
        running_processes()


@pytest.mark.parametrize(
    ("kind", "positions"), [("llama", 128), ("gpt2", 128), ("bert", 128), ("roberta", 127), ("t5", None)]
)
def test_the_longest_input_of_a_model(kind, positions):
    assert max_positions(tiny_model(kind)) == positions


# Loading


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": 3} | {f"w{i}": i for i in range(4, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def save(tmp_path, tokenizer):
    """Save a model with its tokenizer and return the folder."""

    def save(model, name="model", with_tokenizer=True):
        model.save_pretrained(tmp_path / name)
        if with_tokenizer:
            tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_saved_reward_model_scores_as_before(save, kind):
    model, rows = tiny_model(kind), random_rows(LENGTHS)
    loaded, loaded_tokenizer = load_reward_model(save(model.train()), device="cpu")
    assert not loaded.training
    assert loaded_tokenizer.eos_token_id == EOS
    np.testing.assert_array_equal(score(loaded, rows).rewards, score(model, rows).rewards)


def test_precision_attention_and_pad_token_are_taken_as_asked(save):
    folder = save(tiny_model("llama", pad_token_id=None).to(torch.bfloat16))
    loaded, _ = load_reward_model(folder)
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.pad_token_id == PAD
    loaded, _ = load_reward_model(folder, dtype="float32", attention="eager")
    assert loaded.dtype == torch.float32
    assert loaded.config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match=r"dtype must be auto.*found 'fp8'"):
        load_reward_model(folder, dtype="fp8")


def test_a_classifier_is_not_a_reward_model(save):
    folder = save(tiny_model("bert", num_labels=3))
    for allow in (False, True):
        with pytest.raises(ModelError, match=r"BertForSequenceClassification with 3 labels.*num_labels=1"):
            load_reward_model(folder, allow_untrained_head=allow)


def test_a_random_head_is_refused_unless_asked_for_and_then_said_aloud(save, caplog):
    folder = save(tiny_model("bert").bert)
    with pytest.raises(ModelError, match=r"is a BertModel: it has no scoring head.*--allow_untrained_head"):
        load_reward_model(folder)
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, logger="normbt"):
        first, _ = load_reward_model(folder, allow_untrained_head=True, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert "no trained scoring head: classifier.bias, classifier.weight is RANDOM" in caplog.text
    again, _ = load_reward_model(folder, allow_untrained_head=True, seed=1)
    other, _ = load_reward_model(folder, allow_untrained_head=True, seed=2)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_a_head_missing_from_a_reward_model_is_refused(save):
    model = tiny_model("llama")
    state = {name: value for name, value in model.state_dict().items() if name != "score.weight"}
    folder = save(model)
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(ModelError, match=r"does not hold the scoring head \(score.weight\).*modules_to_save"):
        load_reward_model(folder)


def test_a_backbone_that_is_not_all_there_is_refused_always(save):
    model = tiny_model("llama")
    folder = save(model)
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(ModelError, match="lacks 3 weights of LlamaForSequenceClassification"):
        load_reward_model(folder, allow_untrained_head=True)


def test_weights_that_are_cut_short_are_named(save):
    folder = save(tiny_model("llama"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cannot be read.*Fetch or save them again"):
        load_reward_model(folder)


def test_what_is_not_there_is_named(save, tmp_path):
    with pytest.raises(ModelError, match=r"Cannot load '.*/nowhere': "):
        load_reward_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="Cannot load "):
        load_reward_model(save(tiny_model("llama"), with_tokenizer=False))


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:9", "mps:1", "meta"])
def test_a_device_that_is_not_here_is_named_before_anything_is_loaded(device):
    with pytest.raises(ConfigError, match=rf"no device '{device}' here. This machine has: cpu"):
        load_reward_model("./nowhere", device=device)


def adapter_on(base, **settings):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **settings))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, not us
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
class TestAdapters:
    @pytest.fixture
    def base(self, save):
        """A language model without a head, which adapters are trained on."""
        from transformers import LlamaForCausalLM

        return save(LlamaForCausalLM(tiny_model("llama").config), "base")

    def trained(self, base, **settings):
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model.config.pad_token_id = PAD
        if settings.pop("added_token", False):
            model.resize_token_embeddings(VOCABULARY + 1)
        model = adapter_on(model, **settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "score" in name:
                nn.init.normal_(parameter, std=0.5)
        return model.eval()

    @pytest.mark.parametrize("added_token", [False, True])
    def test_an_adapter_with_its_head_scores_as_before(self, base, save, added_token):
        model = self.trained(base, task_type="SEQ_CLS", added_token=added_token)
        rows = random_rows(LENGTHS)
        if added_token:
            rows[0][1] = VOCABULARY
        loaded, _ = load_reward_model(save(model, "adapter"))
        np.testing.assert_allclose(score(loaded, rows).rewards, score(model, rows).rewards, atol=1e-6)

    def test_the_tokenizer_of_the_base_serves_an_adapter_without_one(self, base, save):
        folder = save(self.trained(base, task_type="SEQ_CLS"), "adapter", with_tokenizer=False)
        assert load_reward_model(folder)[1].eos_token_id == EOS

    def test_an_adapter_that_lost_its_head_is_refused(self, base, save):
        folder = save(self.trained(base), "adapter")
        with pytest.raises(ModelError, match=r"does not hold the scoring head \(score.weight\)"):
            load_reward_model(folder)
