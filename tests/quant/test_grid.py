"""Properties of grids over formats, granularities and tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qbench.errors import UsageError
from qbench.quant.formats import FORMATS, Format, Granularity
from qbench.quant.grid import Grid
from qbench.quant.levels import LevelKind
from qbench.quant.scale_rules import absmax_scale, affine_grid, searched_scale
from qbench.quant.site import Site

KINDS: tuple[LevelKind, ...] = ("symmetric", "full", "affine", "midrise")
GRANULARITIES = ("tensor", "channel", "block-4")


def random_tensor(seed: int, shape: tuple[int, ...], size: float = 1.0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def grids(draw: st.DrawFn) -> tuple[Grid, Tensor]:
    """Return a random tensor and a grid fitted to it, sometimes with an offset or a decode scale."""
    fmt, kind, granularity = (
        draw(st.sampled_from(FORMATS)),
        draw(st.sampled_from(KINDS)),
        draw(st.sampled_from(GRANULARITIES)),
    )
    lead = draw(st.sampled_from([(), (3,), (2, 2)]))
    x = random_tensor(
        draw(st.integers(0, 10_000)), (*lead, 5, 8), draw(st.sampled_from([1e-6, 1.0, 1e6]))
    )
    levels = Format.named(fmt).levels(kind)
    site = Site("w", "weight", fmt, granularity, tuple(x.shape))
    scale = absmax_scale(x, site, levels) if levels.high > 0 else torch.ones(site.scale_shape)
    other = draw(st.booleans())
    offset = scale * draw(st.sampled_from([-1.5, 0.25])) if draw(st.booleans()) else None
    return Grid(levels, site.grouping, scale, offset, 1.7 * scale if other else None), x


@given(grids())
def test_codes_decode_to_the_snapped_values(case: tuple[Grid, Tensor]) -> None:
    grid, x = case
    codes = grid.codes(x)
    assert (
        codes.dtype == torch.uint8 and int(codes.max()) < grid.levels.count <= 2**grid.levels.bits
    )
    assert torch.equal(grid.values(codes), grid.snap(x))
    for group in grid.grouping.group(grid.snap(x)).flatten(0, -2):
        assert len(group.unique()) <= grid.levels.count


@given(grids())
def test_snap_takes_the_nearest_level_and_is_idempotent(case: tuple[Grid, Tensor]) -> None:
    grid, x = case
    encode_only = Grid(grid.levels, grid.grouping, grid.scale, grid.offset)
    snapped = encode_only.snap(x)
    units = torch.tensor(grid.levels.units())
    values = units * grid.scale.unsqueeze(-1) + (
        0 if grid.offset is None else grid.offset.unsqueeze(-1)
    )
    distance = (grid.grouping.group(x).unsqueeze(-1) - values).abs()
    chosen = (grid.grouping.group(x) - grid.grouping.group(snapped)).abs()
    assert (
        chosen <= distance.amin(-1) * (1 + 1e-5) + 1e-4 * grid.scale
    ).all()  # float32 at 255 levels
    assert torch.equal(encode_only.snap(snapped), snapped)


@given(grids(), st.integers(0, 1000))
def test_neighbours_enclose_and_random_rounding_picks_one(
    case: tuple[Grid, Tensor], seed: int
) -> None:
    grid, x = case
    grid = Grid(grid.levels, grid.grouping, grid.scale, grid.offset)
    below, above = grid.neighbours(x)
    assert (below <= above).all()
    rounded = grid.snap_randomly(
        x, torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
    )
    assert ((rounded == below) | (rounded == above)).all()
    inside = below < above
    slack = 1e-5 * grid.scale.expand_as(grid.grouping.group(x)).reshape(x.shape)
    assert ((below <= x + slack) & (x <= above + slack))[inside].all()
    assert (
        torch.equal(grid.snap_randomly(grid.snap(x), torch.rand(x.shape)), grid.snap(x))
        or grid.offset is not None
    )


def test_random_rounding_is_unbiased() -> None:
    x = random_tensor(0, (4, 64))
    for fmt in ("int4", "fp4"):
        site = Site("w", "weight", fmt, "channel", (4, 64))
        grid = Grid(site.levels(), site.grouping, absmax_scale(x, site, site.levels()))
        draws = torch.stack(
            [
                grid.snap_randomly(
                    x, torch.rand(x.shape, generator=torch.Generator().manual_seed(i))
                )
                for i in range(4000)
            ]
        )
        below, above = grid.neighbours(x)
        deviation = ((above - x) * (x - below)).clamp_min(0).sqrt() / 4000**0.5
        assert ((draws.mean(0) - x).abs() <= 5 * deviation + 1e-6).all()


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_stacked_tensors_are_snapped_like_single_ones(fmt: str, granularity: str) -> None:
    x = random_tensor(1, (3, 6, 8))
    site = Site("w", "weight", fmt, granularity, (3, 6, 8))
    for make in (
        lambda t, s: Grid(s.levels(), s.grouping, absmax_scale(t, s, s.levels())),
        affine_grid,
    ):
        stacked = make(x, site)
        for index in range(3):
            single = make(x[index], Site("w", "weight", fmt, granularity, (6, 8)))
            assert torch.equal(stacked[index].snap(x[index]), single.snap(x[index]))
            assert torch.equal(stacked.snap(x)[index], single.snap(x[index]))


def test_ties_go_to_the_even_code() -> None:
    site = Site("w", "weight", "int4", "tensor", (1, 5))
    grid = Grid(site.levels(), site.grouping, torch.ones(1, 1))
    assert grid.snap(torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5]])).tolist() == [
        [0.0, 2.0, 2.0, 0.0, -2.0]
    ]
    fp4 = Format.named("fp4").levels()
    halfway = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -5.0]])
    nearest = Grid(fp4, Granularity.named("tensor"), torch.ones(1, 1)).snap(halfway)
    assert nearest.tolist() == [[0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 0.0, -1.0, -4.0]]


@pytest.mark.parametrize(("fmt", "kind", "count"), [("int2", "symmetric", 3), ("int2", "affine", 4), ("int4", "symmetric", 15), ("int4", "full", 16),
                                                    ("int1", "symmetric", 2), ("int8", "symmetric", 255), ("int8", "midrise", 256), ("fp4", "symmetric", 15)])  # fmt: skip
def test_level_counts(fmt: str, kind: LevelKind, count: int) -> None:
    levels = Format.named(fmt).levels(kind)
    assert levels.count == count == len(levels.units()) <= 2**levels.bits


def test_bits_include_scales_and_offsets() -> None:
    x = random_tensor(2, (8, 64))
    for granularity, scales in (("tensor", 1), ("channel", 8), ("block-32", 16)):
        site = Site("w", "weight", "int4", granularity, (8, 64))
        assert (
            Grid(site.levels(), site.grouping, absmax_scale(x, site, site.levels())).bits(512)
            == 4 * 512 + 32 * scales
        )
        assert affine_grid(x, site).bits(512) == 4 * 512 + 64 * scales


def test_the_largest_element_is_exact_and_never_clipped() -> None:
    """The test |w/s| ≤ q_max would clip the largest element of one group in twelve.

    The grid decides by the rounded coordinate and clips none."""
    x = random_tensor(3, (4000, 16))
    site = Site("w", "weight", "int4", "channel", (4000, 16))
    grid = Grid(site.levels(), site.grouping, absmax_scale(x, site, site.levels()))
    assert grid.needs_no_clipping(x).all()
    clipped = (x / grid.scale).abs().amax(-1) > 7
    assert 0.01 < clipped.float().mean() < 0.3


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f != "int1"])
def test_searched_scale_is_the_best_of_its_candidates(fmt: str) -> None:
    x = random_tensor(4, (3, 32)).double()
    site = Site("w", "weight", fmt, "channel", (3, 32))
    levels = site.levels()

    def error(scale: Tensor, weight: Tensor) -> Tensor:
        return ((Grid(levels, site.grouping, scale).snap(x) - x).square() * weight).sum(-1)

    top, importance = absmax_scale(x, site, levels), random_tensor(5, (3, 32)).double().square()
    for weight in (torch.ones_like(x), importance):
        least = error(searched_scale(x, site, levels, weight), weight)
        for fraction in np.arange(1, 101) / 100:
            assert (least <= error(top * fraction, weight) * (1 + 1e-12)).all()


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 8),
        torch.full((2, 8), 0.3),
        torch.tensor([[1e6] + [1.0] * 7, [0.0] * 8]),
        torch.randn(2, 8).half(),
    ],
)
def test_unusual_groups_give_no_nan(fmt: str, x: Tensor) -> None:
    site = Site("w", "weight", fmt, "channel", (2, 8))
    for grid in (Grid(site.levels(), site.grouping, absmax_scale(x, site, site.levels())), affine_grid(x, site),
                 Grid(site.levels(), site.grouping, searched_scale(x, site, site.levels()))):  # fmt: skip
        assert torch.isfinite(grid.snap(x)).all() and grid.snap(x).dtype == torch.float32


def test_zero_stays_zero() -> None:
    site = Site("w", "weight", "int3", "channel", (1, 4))
    x = torch.tensor([[0.0, -1.0, 0.6, 0.1]])
    assert (
        Grid(site.levels(), site.grouping, absmax_scale(x, site, site.levels())).snap(x)[0, 0] == 0
    )


def test_unknown_names_suggest_similar_ones() -> None:
    with pytest.raises(UsageError, match="unknown format 'int9'; did you mean int"):
        Site("w", "weight", "int9", "channel", (2, 2))
    with pytest.raises(UsageError, match="unknown granularity 'chanel'; did you mean channel"):
        Site("w", "weight", "int4", "chanel", (2, 2))
    assert (
        Granularity.named("block-32").misfit((4, 48))
        == "block-32 needs rows of a multiple of 32 elements, not of 48"
    )
