"""Tests that augmentation keeps dates and label aligned, varies, and can be disabled part by part."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the network needs the [train] extra")

from misgnet.training.augmentation import Augmentation, augment

PLAIN = Augmentation(colour=0)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def key(image: torch.Tensor) -> tuple[float, ...]:
    return tuple(image.flatten().mul(1000).round().tolist())


@pytest.mark.parametrize("seed", range(12))
def test_images_and_label_stay_aligned(seed: int) -> None:
    """The channels of the images encode the label, the original position of a pixel, and the date."""
    label = torch.rand(8, 8, generator=drawn(seed)) < 0.5
    position = torch.arange(64.0).view(8, 8) / 64
    before, after = (torch.stack((label.float(), position, torch.full_like(position, date))) for date in (0.25, 0.75))
    new_before, new_after, new_label = augment((before, after, label), PLAIN, drawn(seed), 1.0)
    for image in (new_before, new_after):
        assert torch.equal(image[0] > 0.5, new_label)
        assert torch.equal(image[1].flatten().sort().values, position.flatten())
    assert torch.equal(new_before[1], new_after[1])
    assert {new_before[2].mean().item(), new_after[2].mean().item()} == {0.25, 0.75}


def test_all_turns_flips_and_swaps_occur_and_each_can_be_disabled() -> None:
    before, after = torch.rand(2, 3, 8, 8, generator=drawn(0))
    label = torch.zeros(8, 8, dtype=torch.bool)

    def versions(augmentation: Augmentation) -> set[tuple[float, ...]]:
        generator = drawn(1)
        return {key(augment((before, after, label), augmentation, generator, 1.0)[0]) for _ in range(120)}

    assert len(versions(PLAIN)) == 16
    assert len(versions(Augmentation(colour=0, swap=False))) == 8
    assert len(versions(Augmentation(colour=0, swap=False, flip=False))) == 4
    assert len(versions(Augmentation(colour=0, swap=False, turn=False))) == 2
    assert versions(Augmentation(flip=False, turn=False, swap=False, colour=0)) == {key(before)}


def test_jitter_differs_between_dates_stays_in_range_and_grows() -> None:
    image = torch.rand(3, 8, 8, generator=drawn(0))
    pair = (image, image, torch.zeros(8, 8, dtype=torch.bool))
    colour = Augmentation(flip=False, turn=False, swap=False)
    changes = []
    for share in (0.0, 0.1, 1.0):
        before, after, _ = augment(pair, colour, drawn(3), share)
        assert before.min() >= 0 and before.max() <= 1
        changes.append((before - image).abs().mean().item())
    assert not torch.allclose(before, after, atol=1e-3)
    assert changes[0] == 0 < changes[1] < changes[2]


def test_strength_follows_the_ramp() -> None:
    assert [Augmentation(colour=0.5, colour_ramp=0.4).strength(x) for x in (0, 0.2, 0.4, 1)] == [0, 0.25, 0.5, 0.5]
    assert Augmentation(colour_ramp=0).strength(0) == 1


def test_disabling_one_part_does_not_change_the_others() -> None:
    pair = (*torch.rand(2, 3, 8, 8, generator=drawn(0)), torch.zeros(8, 8, dtype=torch.bool))
    whole = augment(pair, PLAIN, drawn(5), 0)[0]
    again = augment(pair, Augmentation(colour=1), drawn(5), 0)[0]
    assert torch.equal(whole, again)
