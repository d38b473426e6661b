from latteclip.core.digest import digest


def test_digest_tells_where_parts_end():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab", b"c") == digest(b"ab", "c")
    assert len(digest()) == 64
