"""The noise of one model while it is attached: its strength, and the sequence of its draws."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from neft.errors import NoiseError
from neft.kinds import NoiseKind
from neft.rule import add_noise, noise_like, noise_of_rms


class NoiseHandle:
    """The noise of one model while it is attached; made by `neft.noise`.

    Every forward pass in training mode draws from a generator seeded by (seed, rank, step, pass within the step), so a
    resumed run that sets `step` draws what the uninterrupted run would have drawn, and the passes of an accumulation
    differ. Left alone, `step` stays 0 and the passes alone advance.

    Attributes:
        alpha: Strength by the paper's rule, or None.
        rms: Root mean square of the noise if its ratio to the signal is fixed instead, or None.
        kind: The distribution.
        seed: With rank and step, the seed of the noise.
        rank: Of this process.
        num_passes: Passes that drew noise so far.
    """

    def __init__(self, *, alpha: float | None, rms: float | None = None, kind: NoiseKind, seed: int, rank: int) -> None:
        """Takes checked values, exactly one of alpha and rms; use `neft.noise`."""
        self.alpha = alpha
        self.rms = rms
        self.kind: NoiseKind = kind
        self.seed = seed
        self.rank = rank
        self.num_passes = 0
        self._step = 0
        self._pass_in_step = 0
        self._num_since_recomputation = 0
        self._generator: torch.Generator | None = None

    @property
    def is_silent(self) -> bool:
        """True at strength zero: the embeddings stay bit-equal."""
        return not (self.alpha or self.rms)

    @property
    def step(self) -> int:
        """The optimizer step; setting it starts that step's sequence of passes anew."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = step
        self._pass_in_step = 0
        self._num_since_recomputation = 0

    def apply(self, embeddings: Tensor, documents: Tensor) -> Tensor:
        """Returns the embeddings `[B, T, D]` with the next pass's noise, and counts the pass.

        Inside of a backward pass the forward pass is being recomputed (a checkpoint around the whole model): the
        noise is the same as the first time.

        Raises:
            NoiseError: a recomputation could belong to more than one pass.
        """
        if torch._C._current_graph_task_id() == -1:
            self._pass_in_step += 1
            self._num_since_recomputation += 1
            self.num_passes += 1
        else:
            self._enter_recomputation()
        generator = self._seeded_generator(embeddings.device)
        if self.rms is not None:
            drawn = noise_of_rms(embeddings, documents, rms=self.rms, generator=generator, kind=self.kind)
        else:
            drawn = noise_like(embeddings, documents, alpha=self.alpha or 0.0, generator=generator, kind=self.kind)
        return add_noise(embeddings, drawn)

    def _enter_recomputation(self) -> None:
        if self._num_since_recomputation > 1:
            raise NoiseError(
                f"a checkpoint around the whole model recomputes one of {self._num_since_recomputation} passes, so the "
                "noise cannot be the same again; run backward after each pass, or checkpoint the layers "
                "(gradient_checkpointing_enable) instead."
            )
        self._num_since_recomputation = 0

    def _seeded_generator(self, device: torch.device) -> torch.Generator:
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device=device)
        key = f"{self.seed}/{self.rank}/{self._step}/{self._pass_in_step}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        # CPU generators read only the low 32 bits of a seed, which is why they must be hashed, not packed.
        self._generator.manual_seed(int.from_bytes(digest, "big") >> 1)
        return self._generator
