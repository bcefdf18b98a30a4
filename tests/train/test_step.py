"""One step: its losses, gradients, precision and memory."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fixtures.training import CPU, WITH_DISCRIMINATOR, random_clips, small, small_trainer
from wfvae.model.causal import CausalConv3d
from wfvae.train.config import TrainingConfig
from wfvae.train.data import ProceduralClips, held_out
from wfvae.train.perceptual import PerceptualLoss
from wfvae.train.processes import World
from wfvae.train.run import Watcher, train
from wfvae.train.state import TrainingState


def first_step(config: TrainingConfig) -> tuple[TrainingState, dict[str, float]]:
    """The state after the first step on fixed clips, gradients included, and the step's values."""
    weights = config.loss.perceptual
    trainer = small_trainer(config, perceptual=None if weights == "none" else PerceptualLoss(weights))
    return trainer.state, trainer.step([random_clips()])


@pytest.mark.parametrize(("kind", "distance"), [("l1", Tensor.abs), ("l2", Tensor.square)])
def test_reconstruction_loss_of_a_step_is_of_the_configured_kind(
    kind: str, distance: Callable[[Tensor], Tensor]
) -> None:
    trainer = small_trainer(small(loss__reconstruction=kind))
    seen: list[Tensor] = []

    def note(module: object, inputs: object, output: Any) -> None:
        seen.append(output[0].detach().transpose(1, 2))

    trainer.state.model.decoder.register_forward_hook(note)
    values = trainer.step([random_clips()])
    [reconstruction] = seen
    apart = distance(random_clips() / 127.5 - 1 - reconstruction)
    assert values["reconstruction"] == pytest.approx(float(apart.sum() / (2 * 5)), rel=1e-5)
    # The same weights, noise and dropout as before: the first step of that seed.
    _, values = first_step(small(loss__reconstruction=kind, loss__frame_weights=[3, 3, 1, 1]))
    weights = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5]).view(1, 1, 5, 1, 1)
    assert values["reconstruction"] == pytest.approx(float((apart * weights).sum() / (2 * 5)), rel=1e-5)


def test_steps_lower_the_loss_of_their_clips() -> None:
    trainer = small_trainer(small(model__dropout=0.0, optimizer__schedule="constant"))
    clips = next(held_out(ProceduralClips(0, 1, 5, (32, 32)), 1))
    losses = [trainer.step([clips])["reconstruction"] for _ in range(10)]
    assert losses[-1] < 0.6 * losses[0]


def test_optimiser_gets_the_clipped_gradient() -> None:
    # AdamW's first moment is 0.1 of its first gradient.
    limit = 1e-3
    (plain, values), (clipped, same) = (first_step(small(optimizer__clip_norm=n)) for n in (0.0, limit))
    assert values == same
    assert values["gradient_norm"] > 100 * limit  # of before clipping
    whole, short = (
        torch.cat([s.optimizer.state[parameter]["exp_avg"].flatten() for parameter in s.model.parameters()])
        for s in (plain, clipped)
    )
    assert float(whole.norm()) == pytest.approx(0.1 * values["gradient_norm"], rel=1e-4)
    assert float(short.norm()) == pytest.approx(0.1 * limit, rel=1e-4)
    assert torch.allclose(short * (values["gradient_norm"] / limit), whole, rtol=1e-3, atol=1e-4)


def test_weights_decay_decoupled_from_the_gradient() -> None:
    # A decayed weight is the one without decay, less the share rate * decay of the weight before.
    decay = 40.0
    begin = small_trainer(small(**WITH_DISCRIMINATOR)).state
    (plain, values), (decayed, same) = (
        first_step(small(**WITH_DISCRIMINATOR, optimizer__weight_decay=d)) for d in (0.0, decay)
    )
    assert values == same
    share = values["learning_rate"] * decay
    assert share == pytest.approx(0.02)
    for part in ("model", "discriminator"):
        before, without, with_decay = (
            {name: parameter.detach() for name, parameter in getattr(state, part).named_parameters()}
            for state in (begin, plain, decayed)
        )
        assert len(before) > 5
        for name, weight in before.items():
            atol = 1e-6 * max(1.0, float(weight.abs().max()))
            assert torch.allclose(with_decay[name], without[name] - share * weight, rtol=0, atol=atol), name
        assert max(float((without[name] - with_decay[name]).abs().max()) for name in before) > 0.01


GROUPNORM = {f"model__{part}_energy_flow_hidden_size": 32 for part in ("encoder", "decoder")}
GROUPNORM |= {"model__norm_type": "groupnorm", "model__base_channels": 32}
LPIPS = {"loss__perceptual": "random"}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"run__precision": "bf16"}, id="bf16"),
        pytest.param(GROUPNORM | LPIPS, id="groupnorm and lpips", marks=pytest.mark.slow),
    ],
)
def test_recomputed_activations_give_same_gradients_with_a_discriminator(changes: dict[str, Any]) -> None:
    # Eq. 7 differentiates through the model's last layer before the backward pass does.
    settings = WITH_DISCRIMINATOR | changes
    (plain, values), (frugal, same) = (
        first_step(small(**settings, run__activation_checkpointing=on)) for on in (False, True)
    )
    assert any("_checkpoint_wrapped_module" in name for name, _ in frugal.model.named_parameters())
    assert values == pytest.approx(same, rel=1e-5)
    assert values["adversarial_weight"] > 0
    for one, other in ((plain.model, frugal.model), (plain.discriminator, frugal.discriminator)):
        assert one is not None and other is not None
        pairs = list(zip(one.parameters(), other.parameters(), strict=True))
        gradients = [(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None]
        assert len(gradients) == len(pairs) > 5
        largest = max(float(a.norm()) for a, _ in gradients)
        assert all(float((a - b).norm()) <= 1e-5 * (float(a.norm()) + 1e-3 * largest) for a, b in gradients)


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if (key := storage._cdata) in self._counted:
            return
        self._counted.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, count: int) -> None:
        self._counted.discard(key)
        self.now -= count


@pytest.mark.slow
def test_recomputation_more_than_halves_the_memory_of_a_step() -> None:
    peaks = []
    for recompute in ("false", "true"):
        settings = [f"run.activation_checkpointing={recompute}", "run.precision=fp32"]
        trainer = small_trainer(TrainingConfig.load("tiny-quick", settings))
        clips = random_clips(1, 3, 9, 128, 128)
        trainer.step([clips[:, :, :5, :32, :32]])  # allocates the optimiser's moments
        with Live() as live:
            trainer.step([clips])
        peaks.append(live.peak)
    assert peaks[1] < 0.45 * peaks[0]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_model_computes_in_its_precision_and_discriminator_in_fp32_on_a_cpu(
    precision: str, dtype: torch.dtype
) -> None:
    trainer = small_trainer(small(run__precision=precision, **WITH_DISCRIMINATOR))
    state = trainer.state
    assert state.discriminator is not None
    kinds: dict[str, set[torch.dtype]] = {}

    def watch(name: str, layer: torch.nn.Module) -> None:
        layer.register_forward_hook(lambda module, given, made: kinds.setdefault(name, set()).add(made.dtype))

    for name, layer in [*state.model.encoder.named_modules(), *state.model.decoder.named_modules()]:
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Conv3d | CausalConv3d):
            watch(name, layer)
    watch("judge", state.discriminator.head)
    trainer.step([random_clips()])
    assert kinds.pop("judge") == {torch.float32}
    assert len(kinds) > 10
    assert set().union(*kinds.values()) == {dtype}
    assert {tensor.dtype for tensor in state.tensors().values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(("fast", "other"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_auto_precision_takes_the_faster_one_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: str, other: str
) -> None:
    def used(precision: str, run: str, **settings: int) -> tuple[str, list[str]]:
        lines: list[str] = []
        config = small(run__precision=precision, **{"run__steps": 1, "validation__every": 0} | settings)
        train(config, tmp_path / run, CPU, resume=True, watcher=Watcher(notice=lines.append))
        return TrainingConfig.load(tmp_path / run / "config.toml").run.precision, lines

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": fast == "bf16"})
    precision, lines = used("auto", "auto")
    assert precision == fast and not any("bf16 is slower" in line for line in lines)
    precision, lines = used(other, "other")
    assert precision == other and any("bf16 is slower here" in line for line in lines) == (other == "bf16")
    # A resumed run keeps what it had, also where the other one would be faster.
    assert used("auto", "other", run__steps=2)[0] == other


def test_auto_precision_suits_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one of two has bf16, and the other one reports that it has not."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})

    class Beside(World):
        def any(self, flag: bool) -> bool:
            return True

        def wait(self) -> None:
            return

    # The other one also asks to stop.
    assert train(small(run__precision="auto"), tmp_path, Beside(0, 1, CPU.device)).step == 0
    assert TrainingConfig.load(tmp_path / "config.toml").run.precision == "fp32"
