"""Inputs that the test cases of many families share: edge cases first, then lists long enough to tell parts apart."""

from __future__ import annotations

INT_LISTS: tuple[tuple[list[int]], ...] = (
    ([],),
    ([4],),
    ([7, -3],),
    ([3, 8, -5, 10, 0, 21, -12, 6, 15, 50, 9, 20, 7, 60, 5, 35, 2],),
    ([12, 30, -7, 14, 51, 1, -20, 8, 49, 25, 70, 11, 4, -1],),
    ([-9, -4, 13, 28, 42, 18, 3, 100, 16, 22, 10, 10],),
    ([55, 60, 75, 84, 51, 91, 120, 140, 54, -60, 6, 15, 8],),
)
PICKED_INT_LISTS = (  # short lists in which few elements match, for searches
    *INT_LISTS,
    ([6, 12, 20, 9],),
    ([8, 11, 5, 10, 50, 4],),
    ([21, 35, 49, 2, 16, 60],),
    ([-7, -6, -15, -20],),
)
INTS = tuple((x,) for x in (0, 1, 2, -3, 5, 6, 7, 8, 9, -10, 12, 14, 15, 20, 21, 28, 45, 50, 64, 105))
LIMITS = ((0,), (1,), (2,), (7,), (12,), (20,), (31,), (60,))
WORD_LISTS: tuple[tuple[list[str]], ...] = (
    ([],),
    (["a"],),
    (["tree", "sand"],),
    (["apple", "bee", "stone", "tiny", "on", "banana", "dry", "the", "arrow", "seven", "bread", "toe"],),
    (["season", "boy", "at", "tea", "sky", "around", "bed", "red", "tide", "by", "better", "ocean", "e"],),
    (["bed", "no", "sand", "reddest", "yellow"],),
    (["never", "end", "year", "try", "abed", "so", "broken", "table", "done", "alone", "any"],),
)
TEXTS = (
    ("",),
    ("a",),
    ("Hello World",),
    ("level",),
    ("The quick brown Fox jumps, over 2 lazy dogs!",),
    ("x1-Y22_z333. aa BB",),
    ("banana  split?",),
    ("so, no.",),
)
SENTENCES = (
    ("hello",),
    ("the sky is so blue today",),
    ("a boy and a bee sat by the oak tree",),
    ("never send red bread to any season",),
    ("tiny stones are around the table",),
)
MATRICES = (
    ([[5]],),
    ([[1, 2, 3], [4, 5, 6]],),
    ([[7, -2], [0, 15], [20, 9], [-8, 50]],),
    ([[3, 8, -5, 10], [21, 0, 60, -12], [14, 30, 5, 7], [4, 18, 6, 25]],),
    ([[60, 12, 9], [-4, 100, 7], [21, 51, 16]],),
    ([[55, 8, 10], [11, 20, 28], [15, 42, -1]],),
)
SQUARE_MATRICES = (
    ([[5]],),
    ([[1, 2], [3, 4]],),
    ([[7, -2, 9], [0, 15, 4], [20, 8, -6]],),
    ([[3, 8, -5, 10], [21, 0, 60, -12], [14, 30, 5, 7], [4, 18, 6, 25]],),
    ([[60, 12, 9], [-4, -100, 7], [21, 51, 16]],),
    ([[-55, 50, 10], [90, -20, 28], [15, 42, -1]],),
)
STOCKS: tuple[tuple[dict[str, int]], ...] = (
    ({},),
    ({"anna": 4},),
    ({"bob": 12, "tea": -3},),
    ({"apple": 3, "bread": 20, "sand": 8, "eve": 15, "tiny": 50, "rye": 0, "stone": 7, "boy": 60, "dean": -10},),
    ({"better": 21, "art": 5, "sky": 14, "end": 9, "tree": 30, "yard": 16, "so": 2, "table": -4, "ann": 10},),
)
