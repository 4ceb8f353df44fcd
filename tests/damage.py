"""Damage to a file, drawn by hypothesis."""

from hypothesis import strategies as st

DAMAGE = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, 2**32), st.just(b"")),
    *(
        st.tuples(st.just(how), st.integers(0, 2**32), st.binary(min_size=1, max_size=4))
        for how in ("overwrite", "insert")
    ),
)


def damaged(content, damage):
    """The content, cut off, overwritten or with bytes inserted at some place."""
    how, place, new = damage
    place %= len(content)
    rest = {"cut": b"", "overwrite": content[place + len(new) :], "insert": content[place:]}[how]
    return content[:place] + new + rest
