"""An environment of your own: one class, a typed tool, a verifier; then held to the contract.

    python examples/register_environment.py
"""

from typing import Literal

import turncredit
from turncredit.envs import Task, ToolEnv, draw_from_split, tool
from turncredit.envs.check import check
from turncredit.verifiers import MathAnswer

PRICES = {"apple": 35, "bread": 240, "cheese": 515, "milk": 110}


class Change(ToolEnv):
    """How much change is due, in cents."""

    instructions = "Work out the change in cents. Look prices up with the tool. Then answer with the number."
    verifier = MathAnswer()

    def make_task(self, rng):
        paid = (2000, 5000) if self.split == "ood" else (600, 1000)

        def draw():
            return str(rng.choice(list(PRICES))), int(rng.choice(range(*paid, 5)))

        thing, given = draw_from_split(self.split, draw, content=str)
        return Task(f"One {thing} is paid with {given} cents.",
                    {"answer": given - PRICES[thing], "thing": thing, "given": given}, self.split)

    @tool
    def price(self, thing: Literal["apple", "bread", "cheese", "milk"]) -> int:
        """Look up what a thing costs, in cents."""
        return PRICES[thing]

    def expert_action(self):
        if not self.turns:
            return self.call("price", thing=self.task.hidden["thing"])
        return str(self.task.hidden["given"] - int(self.turns[-1].observation))


if __name__ == "__main__":
    turncredit.register("examples/Change-v0", Change)
    env = turncredit.make("examples/Change-v0", tool_format="plain")
    observation, info = env.reset(seed=0)
    print(f"task: {observation}\ntools: {[tool.name for tool in info['tools']]}")
    over = False
    while not over:
        action = env.unwrapped.expert_action()
        observation, reward, terminated, truncated, info = env.step(action)
        over = terminated or truncated
        print(f"agent: {action}\nenvironment: {observation}")
    print(f"reward {reward}: {info['verdict'].reason}")
    findings = check("examples/Change-v0", quick=True)
    failed = [finding for finding in findings if finding.verdict == "fail"]
    print(f"{sum(f.verdict == 'pass' for f in findings)} rows of the contract hold, {len(failed)} fail")
    assert not failed, failed
