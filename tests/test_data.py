import numpy as np
import pytest
import torch

from formula_gan.core import FormulaGanError, get_profile
from formula_gan.corpora import load_corpus
from formula_gan.data import (Augmentation, ImageSet, Stream, augment, collate, ink_images, ordered_batches,
                              print_images)
from formula_gan.figure_streams import Drawing, FigureStream
from formula_gan.tokenizer import Vocab

demo = get_profile("demo", workers=1, synthetic_images=30, printed_formulas=30)


def sets(counts=(7, 11, 4), seed=0):
    rng = np.random.default_rng(seed)
    shapes = lambda n: [(int(rng.integers(8, 40)), int(rng.integers(8, 110))) for _ in range(n)]
    return [ImageSet([rng.random(s).astype("float32") for s in shapes(n)], [f"{k} + {i % 10}" for i in range(n)], k % 2)
            for k, n in enumerate(counts)]


VOCAB = Vocab.from_tokens([list("0123456789+")])


def same(a, b):
    tensors = ("x", "mask", "ids", "domain")
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in tensors) and a.tokens == b.tokens


def test_a_batch_is_a_function_of_seed_and_step():
    one, two = (Stream(sets(), VOCAB, demo, 4, seed=3, pool=5) for _ in range(2))
    forward = [one[k] for k in range(12)]
    assert all(same(two[k], forward[k]) for k in (11, 3, 7, 0, 3))  # any order, as a resumed run asks
    assert not same(Stream(sets(), VOCAB, demo, 4, seed=4, pool=5)[0], forward[0])


def figure_stream(seed=0, area=30_000):
    from formula_gan.drawing import make_figure
    from formula_gan.figure_sets import FigureSet
    rng = np.random.default_rng(1)
    figures = []
    for n in range(150):
        lines = [rng.uniform(0, 1, (5, 2)) * (rng.uniform(0.5, 12), rng.uniform(0.5, 3)) for _ in range(3)]
        figures.append(make_figure(f"{n % 10} + 1", lines, [0, 1, 2], [False] * 3, np.arange(3), 1.0))
    parts = [FigureSet(figures[:100]), FigureSet(figures[100:])]
    return FigureStream(parts, VOCAB, Drawing(16.0, area=area), seed, pool=60)


def test_a_batch_of_figures_is_a_function_of_seed_and_step():
    one, two = figure_stream(), figure_stream()
    forward = [one[k] for k in range(12)]
    for k in (11, 3, 7, 0, 3):
        assert same(two[k], forward[k]) and torch.equal(two[k].boxes.nan_to_num(), forward[k].boxes.nan_to_num())
    assert not same(figure_stream(seed=1)[0], forward[0])


def test_batches_of_figures_keep_their_area_and_boxes():
    stream = figure_stream()
    for batch in (stream[k] for k in range(12)):
        count, _, height, width = batch.x.shape
        assert count == 1 or batch.x.numel() < 1.6 * 30_000
        boxes = batch.boxes[:, :3]
        # the end of a formula has no place
        assert batch.boxes.shape == (count, 4, 4) and batch.boxes[:, 3].isnan().all()
        assert boxes.min() >= 0 and boxes[..., 2].max() <= width and boxes[..., 3].max() <= height
    shown = sorted(item[:2] for number in range(5) for group in stream.pools.batches(number) for item in group)
    assert len(shown) == 300 and {shown.count((1, n)) for n in range(50)} == {3}  # three epochs of the smaller set


def test_workers_bring_the_same_batches():
    stream = Stream(sets(), VOCAB, demo, 4, seed=3, pool=5)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, sampler=range(2, 14), num_workers=2)
    assert all(same(batch, stream[k]) for k, batch in zip(range(2, 14), loader))


def test_sources_are_drawn_evenly_and_epochs_are_permutations():
    stream = Stream(sets((7, 11)), VOCAB, demo, 4, seed=0)
    drawn = [stream.pools.turns[n] for n in range(2 * 77)]
    for which, size in enumerate((7, 11)):
        indices = [i for w, i in drawn if w == which]
        assert len(indices) == 77
        for start in range(0, 77 - size + 1, size): assert sorted(indices[start:start + size]) == list(range(size))
    assert [i for w, i in drawn if w == 0][:7] != [i for w, i in drawn if w == 0][7:14]


def test_batches_are_of_similar_size():
    big = sets((400,))

    def padded(stream):
        masks = [stream[k].mask for k in range(32)]
        return 1 - sum(float(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    assert padded(Stream(big, VOCAB, demo, 8, 0, None)) < 0.65 * padded(Stream(big, VOCAB, demo, 8, 0, None, pool=1))


def test_streams_with_one_order_bring_large_with_large():
    def areas(seed, **options):
        stream = Stream(sets((90, 70), seed), VOCAB, demo, 4, seed=seed, pool=32, ranges=None, **options)
        return np.array([stream[k].x[0].numel() for k in range(32)])

    together = np.corrcoef(areas(1, shuffle_seed=5), areas(2, shuffle_seed=5))[0, 1]
    assert together > 0.8 > 0.6 > abs(np.corrcoef(areas(1), areas(2))[0, 1])


def test_augmentation_cuts_nothing_off_and_keeps_the_width_limit():
    rng = np.random.default_rng(0)
    for size in ((20, 40), (30, 110), (60, 20)):
        image = np.full(size, 255, "uint8")
        for _ in range(30):
            out = augment(image, demo, rng, Augmentation(scale=(0.8, 1.2)))
            assert out.shape[1] <= demo.max_width + 1
            assert max(out[0].max(), out[-1].max(), out[:, 0].max(), out[:, -1].max()) == 0


def test_augmentation_keeps_the_ink():
    image = np.zeros((24, 40), "uint8")
    image[6:18, 8:32] = 255
    none = Augmentation(0, 0, (1, 1))
    out = augment(image, demo, np.random.default_rng(1), none)
    rows, columns = np.flatnonzero(out.any(1)), np.flatnonzero(out.any(0))
    assert abs(len(rows) - 12) <= 2 and abs(len(columns) - 24) <= 2
    assert abs(int(out.astype(int).sum()) - int(image.astype(int).sum())) < 0.02 * image.astype(int).sum()


def test_collate_pads_to_16_and_masks():
    batch = collate([np.ones((5, 17), "float32"), np.full((18, 3), 255, "uint8")], [[1, 2], [1, 7, 2]], [0, 1])
    assert batch.x.shape == (2, 1, 32, 32) and torch.equal(batch.x, batch.mask)
    assert batch.mask.sum((1, 2, 3)).tolist() == [85, 54] and batch.ids.tolist() == [[1, 2, 0], [1, 7, 2]]


def test_ordered_batches_bring_every_image_once():
    images = sets((50,))[0]
    seen = [(n, batch.tokens[row])
            for numbers, batch in ordered_batches(images, VOCAB, demo, pixels=20_000)
            for row, n in enumerate(numbers)]
    assert sorted(n for n, _ in seen) == list(range(50)) and all(images.tokens[n] == t for n, t in seen)
    assert all(batch.x.numel() <= 40_000 for _, batch in ordered_batches(images, VOCAB, demo, pixels=20_000))


def test_image_sets_survive_the_disk(tmp_path):
    images = sets()[1]
    images.save(tmp_path)
    again = ImageSet.load(tmp_path)
    assert all(np.array_equal(images[i], again[i]) for i in range(len(images)))
    assert again.tokens == images.tokens
    assert again.domain == images.domain
    (tmp_path / "shapes.npy").unlink()
    with pytest.raises(FormulaGanError, match="not a whole image set"): ImageSet.load(tmp_path)


def test_unknown_symbols_are_named():
    with pytest.raises(KeyError, match="9"):
        Stream(sets(), Vocab.from_tokens([list("012345678+")]), demo, 60, 0, pool=1)[0]


def test_print_and_ink_have_one_symbol_size():
    corpus = load_corpus(demo)
    ink, _ = ink_images(corpus.ink["train"], demo, progress=False)
    prints, _ = print_images(sorted(set(ink.tokens)), demo, 0, progress=False)
    height = {t: prints.shapes[i, 0] for i, t in enumerate(prints.tokens)}
    ratio = [ink.shapes[i, 0] / height[t] for i, t in enumerate(ink.tokens) if t in height]
    assert 0.85 < np.median(ratio) < 1.2


def test_scoring_drops_no_image():
    corpus = load_corpus(demo)
    kept, skipped = ink_images(corpus.ink["test"], get_profile("demo", height=16, max_tokens=3), limits=False,
                               progress=False)
    assert len(kept) == len(corpus.ink["test"]) and not skipped




def test_a_rescaled_set_keeps_its_boxes_over_the_ink():
    from formula_gan.data import HANDWRITTEN, ImageSet, rescale_set
    image = np.zeros((40, 80), "uint8")
    image[10:30, 20:60] = 255
    extra = [{"size": 1.0, "boxes": [[20, 10, 60, 30], None]}]
    small = rescale_set(ImageSet([image], ["a b"], HANDWRITTEN, extra), 0.5)
    assert small.shapes.tolist() == [[20, 40]]
    assert small.extra == [{"size": 1.0, "boxes": [[10.0, 5.0, 30.0, 15.0], None]}]
    assert (np.asarray(small[0])[6:14, 11:29] == 255).all()
