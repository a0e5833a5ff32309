"""Packing: every text comes back, whatever was packed before it, and what is alike takes little."""

from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.packing import Packer


@given(texts=st.lists(st.binary(max_size=500), max_size=20))
def test_every_text_is_had_alone(texts):
    packer = Packer()
    packed = [packer.packed(text) for text in texts]
    assert [packer.unpacked(one) for one in reversed(packed)] == texts[::-1]


def test_what_is_alike_takes_a_fraction():
    packer = Packer()
    texts = [b'{"prompt":"The same woman, portrait %d","seed":%d}' % (n, n * 7919) for n in range(100)]
    packed = [packer.packed(text) for text in texts]
    assert sum(map(len, packed[1:])) < sum(map(len, texts[1:])) / 2
