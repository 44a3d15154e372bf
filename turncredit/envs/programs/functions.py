"""Functions over numbers, lists and strings: three levels, one template in four held out for the test split."""

from __future__ import annotations

import numpy as np

from turncredit.envs.programs.template import Template, between, list_of, one_of, text_of

INTS = list_of(between(-20, 40))
SOME_INTS = list_of(between(-20, 40), least=1)
FEW_VALUES = list_of(between(0, 5), most=14)
WORDS = list_of(text_of("aabcdeeiorst", 1, 6), most=7)
TEXT = text_of("aabbcdeeiou xyz")


def maze(rng: np.random.Generator) -> list[str]:
    """2 to 6 rows of 2 to 6 cells, few of them walls."""
    width, height = (int(n) for n in rng.integers(2, 7, size=2))
    return ["".join("#" if rng.random() < 0.18 else "." for _ in range(width)) for _ in range(height)]


ONE_STEP = [
    Template("count_in_band", 1,
             "Return how many numbers x of `items` satisfy $low <= x <= $high.", """
        def count_in_band(items: list[int]) -> int:
            return sum($low <= x <= $high for x in items)
        """, [INTS], {"low": between(-10, 5), "high": between(6, 30)}),
    Template("sum_of_multiples", 1,
             "Return the sum of the numbers in `items` that are divisible by $k.", """
        def sum_of_multiples(items: list[int]) -> int:
            return sum(x for x in items if x % $k == 0)
        """, [INTS], {"k": between(2, 7)}),
    Template("every_nth", 1,
             "Return the items at the indices $start, $start + $k, $start + 2*$k and so on (from 0).", """
        def every_nth(items: list[int]) -> list[int]:
            return items[$start::$k]
        """, [INTS], {"start": between(0, 2), "k": between(2, 4)}),
    Template("scale_and_shift", 1,
             "Return a list in which each number x of `items` is replaced by $a*x + $b.", """
        def scale_and_shift(items: list[int]) -> list[int]:
            return [$a * x + $b for x in items]
        """, [INTS], {"a": between(2, 9), "b": between(1, 20)}),
    Template("repeat_letters", 1,
             "Return `text` with each of its characters written $k times in a row.", """
        def repeat_letters(text: str) -> str:
            return "".join(c * $k for c in text)
        """, [TEXT], {"k": between(2, 5)}),
    Template("count_letters", 1,
             "Return how many characters of `text` are one of the letters in '$letters'.", """
        def count_letters(text: str) -> int:
            return sum(c in "$letters" for c in text)
        """, [TEXT], {"letters": one_of("ab", "aeiou", "xyz", "bcd", "ae", "ei", "cdxyz", "abc")}),
    Template("clamp_all", 1,
             "Return `items` with numbers below $low raised to $low and numbers above $high cut to $high.", """
        def clamp_all(items: list[int]) -> list[int]:
            return [min(max(x, $low), $high) for x in items]
        """, [INTS], {"low": between(-10, 5), "high": between(6, 30)}, held_out=True),
    Template("long_words", 1,
             "Return the words of `words` that have at least $k letters, in their order.", """
        def long_words(words: list[str]) -> list[str]:
            return [w for w in words if len(w) >= $k]
        """, [WORDS], {"k": between(2, 5)}, held_out=True),
]

TWO_STEPS = [
    Template("digit_sum_in_base", 2,
             "Return the sum of the digits of `number` written in base $base.", """
        def digit_sum_in_base(number: int) -> int:
            total = 0
            while number:
                number, digit = divmod(number, $base)
                total += digit
            return total
        """, [between(0, 5000)], {"base": between(2, 9)}),
    Template("longest_run", 2,
             "Return the length of the longest run of neighbours x in `items` that all satisfy x $sign $k "
             "(0 where there is none).", """
        def longest_run(items: list[int]) -> int:
            best = run = 0
            for x in items:
                run = run + 1 if x $sign $k else 0
                best = max(best, run)
            return best
        """, [INTS], {"sign": one_of(">", "<"), "k": between(5, 15)}),
    Template("shift_letters", 2,
             "Return `text` with each lower-case letter moved $k places on in the alphabet, z being "
             "followed by a; other characters stay.", """
        def shift_letters(text: str) -> str:
            moved = (chr((ord(c) - 97 + $k) % 26 + 97) if "a" <= c <= "z" else c for c in text)
            return "".join(moved)
        """, [TEXT], {"k": between(1, 25)}),
    Template("chunk_sums", 2,
             "Cut `items` into pieces of $k (the last one may be shorter) and return their sums.", """
        def chunk_sums(items: list[int]) -> list[int]:
            return [sum(items[i:i + $k]) for i in range(0, len(items), $k)]
        """, [INTS], {"k": between(2, 5)}),
    Template("values_seen_often", 2,
             "Return the values that stand in `items` at least $k times, each once, in ascending order.", """
        def values_seen_often(items: list[int]) -> list[int]:
            return sorted({x for x in items if items.count(x) >= $k})
        """, [FEW_VALUES], {"k": between(2, 3)}),
    Template("sort_words", 2,
             "Return `words` sorted by how often the letter '$letter' stands in them, fewest first; words "
             "with equally many in alphabetical order.", """
        def sort_words(words: list[str]) -> list[str]:
            return sorted(words, key=lambda w: (w.count("$letter"), w))
        """, [WORDS], {"letter": one_of(*"aeiorst")}),
    Template("smallest_gap", 2,
             "Return the smallest absolute difference between two numbers of `items` that are $k positions"
             " apart, or -1 where there are none.", """
        def smallest_gap(items: list[int]) -> int:
            return min((abs(a - b) for a, b in zip(items, items[$k:])), default=-1)
        """, [INTS], {"k": between(1, 3)}, held_out=True),
    Template("run_lengths", 2,
             "Return `text` with each run of equal characters written as the character and the run's "
             "length, where runs longer than $k are split into runs of $k and a rest.", """
        def run_lengths(text: str) -> str:
            out, i = [], 0
            while i < len(text):
                j = i
                while j < len(text) and text[j] == text[i] and j - i < $k:
                    j += 1
                out.append(f"{text[i]}{j - i}")
                i = j
            return "".join(out)
        """, [text_of("aaab", most=14)], {"k": between(2, 6)}, held_out=True),
]

ALGORITHMS = [
    Template("count_subarrays", 3,
             "Return how many contiguous non-empty pieces of `items` have a sum divisible by $k.", """
        def count_subarrays(items: list[int]) -> int:
            seen, total, count = {0: 1}, 0, 0
            for x in items:
                total = (total + x) % $k
                count += seen.get(total, 0)
                seen[total] = seen.get(total, 0) + 1
            return count
        """, [INTS], {"k": between(2, 7)}),
    Template("cheapest_stairs", 3,
             "`costs` are the costs of standing on the steps of a staircase. Start below the first step; "
             "each move goes up by 1 to $k steps; the top is just above the last step. Return the least "
             "total cost to reach the top.", """
        def cheapest_stairs(costs: list[int]) -> int:
            best = [0]
            for cost in [*costs, 0]:
                best.append(min(best[-$k:]) + cost)
            return best[-1]
        """, [list_of(between(1, 30))], {"k": between(2, 4)}),
    Template("merge_near", 3,
             "`spans` are pairs [start, end] with start <= end. Merge all that overlap, touch, or are at "
             "most $k apart, and return the merged pairs in ascending order.", """
        def merge_near(spans: list[list[int]]) -> list[list[int]]:
            merged: list[list[int]] = []
            for start, end in sorted(spans):
                if merged and start - merged[-1][1] <= $k:
                    merged[-1][1] = max(merged[-1][1], end)
                else:
                    merged.append([start, end])
            return merged
        """, [list_of(lambda rng: sorted(int(n) for n in rng.integers(0, 60, size=2)), most=7)], {"k": between(1, 4)}),
    Template("increasing_subsequence", 3,
             "Return the length of the longest subsequence of `items` in which each number is at least $k "
             "larger than the one before it.", """
        def increasing_subsequence(items: list[int]) -> int:
            best: list[int] = []
            for i, x in enumerate(items):
                best.append(1 + max((best[j] for j in range(i) if x - items[j] >= $k), default=0))
            return max(best, default=0)
        """, [INTS], {"k": between(1, 6)}),
    Template("window_peaks", 3,
             "Return, for each window of $k neighbours in `items` from left to right, its maximum minus "
             "its minimum. Where `items` has fewer than $k numbers the list is empty.", """
        def window_peaks(items: list[int]) -> list[int]:
            windows = [items[i:i + $k] for i in range(len(items) - $k + 1)]
            return [max(w) - min(w) for w in windows]
        """, [INTS], {"k": between(2, 5)}),
    Template("change_ways", 3,
             "Return in how many ways `amount` can be paid with any number of coins of the values $a, $b "
             "and $c (the order of the coins does not matter).", """
        def change_ways(amount: int) -> int:
            ways = [1] + [0] * amount
            for coin in ($a, $b, $c):
                for value in range(coin, amount + 1):
                    ways[value] += ways[value - coin]
            return ways[amount]
        """, [between(0, 90)], {"a": between(1, 3), "b": between(4, 6), "c": between(7, 12)}),
    Template("grid_paths", 3,
             "`grid` is a list of strings of equal length in which '#' is a wall. Return the least number "
             "of moves from the top left to the bottom right, where a move goes one cell $moves, or -1 "
             "where there is no way. Start or end may be walls: then there is none.", """
        def grid_paths(grid: list[str]) -> int:
            steps = {"right or down": [(0, 1), (1, 0)], "up, down, left or right": [(0, 1), (1, 0), (0, -1), (-1, 0)]}
            rows, columns = len(grid), len(grid[0])
            if "#" in (grid[0][0], grid[-1][-1]):
                return -1
            distance, todo = {(0, 0): 0}, [(0, 0)]
            for row, column in todo:
                for down, right in steps["$moves"]:
                    cell = row + down, column + right
                    if cell in distance or not (0 <= cell[0] < rows and 0 <= cell[1] < columns):
                        continue
                    if grid[cell[0]][cell[1]] != "#":
                        distance[cell] = distance[row, column] + 1
                        todo.append(cell)
            return distance.get((rows - 1, columns - 1), -1)
        """, [maze], {"moves": one_of("right or down", "up, down, left or right")}, held_out=True),
    Template("best_selection", 3,
             "Choose numbers of `items` so that any two chosen ones are at least $k positions apart. "
             "Return the largest possible sum (0 where nothing is chosen).", """
        def best_selection(items: list[int]) -> int:
            best = [0]
            for i, x in enumerate(items):
                best.append(max(best[-1], best[max(0, i + 1 - $k)] + x))
            return best[-1]
        """, [INTS], {"k": between(2, 4)}, held_out=True),
]

FUNCTIONS = (*ONE_STEP, *TWO_STEPS, *ALGORITHMS)
