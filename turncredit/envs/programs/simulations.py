"""Programs that read standard input and simulate something: another family, for evaluation out of distribution."""

from __future__ import annotations

from turncredit.envs.programs.template import Template, between, lines_of, list_of, one_of, text_of

NUMBERS = list_of(between(-20, 40), least=1)


def row(items: object) -> str:
    """Numbers of a list on one line."""
    assert isinstance(items, list)
    return " ".join(map(str, items))


SIMULATIONS = (
    Template("walk", 1,
             "The input is one line of the letters U, D, L and R. A robot starts at (0, 0); U adds $k to "
             "y, D takes $k from y, R adds 1 to x and L takes 1 from x. Print the final x and y with a "
             "space between.", """
        def solve(text: str) -> str:
            line = text.strip()
            x, y = line.count("R") - line.count("L"), $k * (line.count("U") - line.count("D"))
            return f"{x} {y}"
        """, [lines_of(text_of("UDLR", 1, 20))], {"k": between(2, 5)}),
    Template("meter", 1,
             "The input is one line of integers, the changes of a meter that starts at $start. After each "
             "change a meter below 0 is set to 0. Print its final value.", """
        def solve(text: str) -> str:
            meter = $start
            for change in map(int, text.split()):
                meter = max(0, meter + change)
            return str(meter)
        """, [lines_of(lambda rng: row(NUMBERS(rng)))], {"start": between(1, 20)}),
    Template("stack", 2,
             "The input has one command a line: 'push N' puts the integer N on a stack, 'pop' takes the "
             "top off (nothing happens where the stack is empty), 'double' multiplies the top by $k "
             "(nothing happens where it is empty). Print the sum of the stack at the end.", """
        def solve(text: str) -> str:
            stack: list[int] = []
            for line in text.splitlines():
                command, *number = line.split()
                if command == "push":
                    stack.append(int(number[0]))
                elif stack and command == "pop":
                    stack.pop()
                elif stack:
                    stack[-1] *= $k
            return str(sum(stack))
        """, [lambda rng: "".join(f"{line}\n" for line in list_of(
            lambda rng: one_of("pop", "double", f"push {between(-9, 30)(rng)}", f"push {between(1, 9)(rng)}")(rng),
            least=1)(rng))], {"k": between(2, 4)}),
    Template("ledger", 2,
             "Each input line is 'NAME AMOUNT', where the amount is an integer that is added to that "
             "person's account, all of which start at 0. A line that would take an account below -$limit "
             "is ignored. Print one line 'NAME BALANCE' for each name that occurs, in alphabetical order.", """
        def solve(text: str) -> str:
            accounts: dict[str, int] = {}
            for line in text.splitlines():
                name, amount = line.split()
                balance = accounts.setdefault(name, 0) + int(amount)
                if balance >= -$limit:
                    accounts[name] = balance
            return "\\n".join(f"{name} {accounts[name]}" for name in sorted(accounts))
        """, [lambda rng: "".join(f"{line}\n" for line in list_of(
            lambda rng: f"{one_of('ann', 'bob', 'cy', 'dot')(rng)} {between(-30, 30)(rng)}", least=1)(rng))],
        {"limit": between(5, 25)}),
    Template("cells", 3,
             "The first input line is a row of cells, '#' alive and '.' dead; the second is a number of "
             "generations. In each generation a cell is alive afterwards exactly where the number of "
             "living cells among itself and its two neighbours is $low or $high (outside the row all are "
             "dead). Print the final row.", """
        def solve(text: str) -> str:
            row, generations = text.split()
            for _ in range(int(generations)):
                padded = f".{row}."
                alive = (padded[i:i + 3].count("#") in ($low, $high) for i in range(len(row)))
                row = "".join("#" if cell else "." for cell in alive)
            return row
        """, [lines_of(text_of("##.", 3, 14), between(0, 5))], {"low": one_of(0, 1), "high": one_of(2, 3)}),
    Template("scheduler", 3,
             "The input is one line of positive integers: the time that each task needs, in the order of a"
             " queue. The first task of the queue runs for $k units or until it is finished, whichever is "
             "earlier; unfinished, it goes to the end of the queue. Print the times at which the tasks "
             "finish, in the order of the input, with spaces between.", """
        def solve(text: str) -> str:
            left = list(map(int, text.split()))
            queue, done, clock = list(range(len(left))), [0] * len(left), 0
            while queue:
                task = queue.pop(0)
                spent = min($k, left[task])
                clock += spent
                left[task] -= spent
                if left[task]:
                    queue.append(task)
                else:
                    done[task] = clock
            return " ".join(map(str, done))
        """, [lines_of(lambda rng: row(list_of(between(1, 12), least=1, most=7)(rng)))], {"k": between(2, 5)}),
    Template("machine", 4,
             "The input has one instruction a line for a machine with a register that starts at 0: 'add "
             "N', 'mul N', and 'jmp N M', which goes on at line N (the first is 1) where the register is "
             "less than M, and at the next line otherwise. It stops behind the last line or after $limit "
             "instructions. All numbers are integers; the register is kept modulo $modulus (0 to $modulus "
             "- 1) after each instruction. Print it.", """
        def solve(text: str) -> str:
            lines = [line.split() for line in text.splitlines()]
            register, at, ran = 0, 0, 0
            while at < len(lines) and ran < $limit:
                name, *numbers = lines[at]
                a, *rest = map(int, numbers)
                at, ran = at + 1, ran + 1
                if name == "add":
                    register += a
                elif name == "mul":
                    register *= a
                elif register < rest[0]:
                    at = a - 1
                register %= $modulus
            return str(register)
        """, [lambda rng: "".join(f"{line}\n" for line in list_of(
            lambda rng: one_of(f"add {between(1, 30)(rng)}", f"mul {between(2, 5)(rng)}",
                               f"jmp {between(1, 2)(rng)} {between(10, 90)(rng)}")(rng), least=2, most=9)(rng))],
        {"limit": between(20, 60), "modulus": one_of(97, 101, 211, 509)}),
    Template("elevator", 4,
             "The first input line is the floor where an elevator stands; each other line is 'FROM TO', a "
             "passenger. It serves one passenger after the other: always the waiting one whose FROM is "
             "nearest to where it stands (of equally near ones the lower floor, then the one first in the "
             "input), and drives there and on to TO. A floor takes $k seconds, a stop (at FROM and at TO) "
             "$stop seconds. Print the total seconds and the final floor with a space between.", """
        def solve(text: str) -> str:
            first, *rest = text.splitlines()
            floor, seconds = int(first), 0
            waiting = [tuple(map(int, line.split())) for line in rest]
            while waiting:
                start, end = min(waiting, key=lambda p: (abs(p[0] - floor), p[0]))
                waiting.remove((start, end))
                seconds += $k * (abs(start - floor) + abs(end - start)) + 2 * $stop
                floor = end
            return f"{seconds} {floor}"
        """, [lambda rng: f"{between(0, 9)(rng)}\n" + "".join(f"{line}\n" for line in list_of(
            lambda rng: f"{between(0, 9)(rng)} {between(0, 9)(rng)}", most=6)(rng))],
        {"k": between(1, 4), "stop": between(5, 9)}),
)
