"""Household problems over ALFWorld's own domain: its goals, its classes of things, and what may stand in what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from turncredit.envs.adapters.packages import imported

TYPES = ("pick_and_place_simple", "look_at_obj_in_light", "pick_clean_then_place_in_recep",
         "pick_heat_then_place_in_recep", "pick_cool_then_place_in_recep", "pick_two_obj_and_place")
_NEEDS = {"pick_clean_then_place_in_recep": "Cleanable", "pick_heat_then_place_in_recep": "Heatable",
          "pick_cool_then_place_in_recep": "Coolable"}
_NAMED_RECEPTACLES = {"SinkBasinType", "MicrowaveType", "FridgeType"}
_LAMPS = ("DeskLamp", "FloorLamp")
# Receptacles of a room: the least and the most of each class. The package has them for the 3D scenes alone.
_ROOMS: dict[str, dict[str, tuple[int, int]]] = {
    "Kitchen": {"Fridge": (1, 1), "Microwave": (1, 1), "SinkBasin": (1, 1), "StoveBurner": (2, 4), "CounterTop": (1, 2),
                "Cabinet": (2, 4), "Drawer": (2, 4), "GarbageCan": (1, 1), "DiningTable": (0, 1)},
    "LivingRoom": {"Sofa": (1, 1), "ArmChair": (1, 2), "CoffeeTable": (1, 1), "SideTable": (1, 2), "Drawer": (2, 4),
                   "Shelf": (1, 3), "GarbageCan": (1, 1), "Safe": (0, 1)},
    "Bedroom": {"Bed": (1, 1), "Desk": (1, 1), "SideTable": (1, 2), "Drawer": (2, 5), "Shelf": (1, 3),
                "Dresser": (0, 1), "GarbageCan": (1, 1), "Safe": (0, 1)},
    "Bathroom": {"SinkBasin": (1, 2), "BathtubBasin": (0, 1), "Toilet": (1, 1), "CounterTop": (1, 1), "Cabinet": (2, 4),
                 "Shelf": (0, 2), "GarbageCan": (1, 1)},
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in PDDL, and what is asked for in words."""

    pddl: str
    goal: str
    type: str


def draw_problem(rng: np.random.Generator, types: tuple[str, ...], things: int) -> Problem:
    """A room with so many things beside those asked for, and a goal of one of the types, not fulfilled at first."""
    known = imported("alfworld.gen.constants", "alfworld", "alfworld")
    goals = imported("alfworld.gen.goal_library", "alfworld", "alfworld").gdict
    type = types[int(rng.integers(len(types)))]
    room = _one(rng, sorted(known.GOALS_VALID[type]))
    stands = {name: int(rng.integers(least, most + 1)) for name, (least, most) in _ROOMS[room].items()}
    receptacles = [_named(name, number) for name, count in stands.items() for number in range(1, count + 1)]
    holds = {name: sorted(thing for thing in known.VAL_RECEPTACLE_OBJECTS[name]
                          if not thing.endswith("Sliced") and thing not in _LAMPS)
             for name, count in stands.items() if count}
    target, into = _asked(rng, holds, known.VAL_ACTION_OBJECTS.get(_NEEDS.get(type, ""), ()))
    lit = type == "look_at_obj_in_light"
    copies = 2 if type == "pick_two_obj_and_place" else 1
    placed = [(f"{target}_bar_{number}", _place(rng, receptacles, holds, target, "" if lit else into))
              for number in range(1, copies + 1)]
    others = sorted({thing for some in holds.values() for thing in some} - {target})
    for thing in (others[int(i)] for i in rng.integers(len(others), size=things)):
        number = 1 + sum(_class(name) == thing for name, _ in placed)
        placed.append((f"{thing}_bar_{number}", _place(rng, receptacles, holds, thing, "")))
    lamp = ""
    if lit:
        lamp = _LAMPS[0]
        tables = [name for name in receptacles if _class(name) in ("SideTable", "Desk")]
        placed.append((f"{lamp}_bar_1", _one(rng, tables)))
    template = _one(rng, goals[type]["templates"])
    words = template.format(obj=target.lower(), recep=into.lower(), toggle=lamp.lower(), mrecep="")
    goal = goals[type]["pddl"].format(obj=target, recep=into, toggle=lamp, mrecep="").replace("#", "-")
    facts = [*_receptacle_facts(receptacles, holds, {_class(name) for name, _ in placed}, known),
             *_thing_facts(placed, receptacles, known)]
    return Problem(_written(receptacles, placed, facts, goal), words, type)


def _asked(rng: np.random.Generator, holds: dict[str, list[str]], able: Any) -> tuple[str, str]:
    """A class of things that is able, and a class of receptacles that takes it and is not its only place."""
    homes: dict[str, list[str]] = {}
    for name, some in holds.items():
        for thing in some:
            homes.setdefault(thing, []).append(name)
    pairs = sorted((thing, name) for thing, names in homes.items() for name in names
                   if len(names) > 1 and (not able or thing in able))
    thing = _one(rng, sorted({thing for thing, _ in pairs}))
    return thing, _one(rng, [name for one, name in pairs if one == thing])


def _place(rng: np.random.Generator, receptacles: list[str], holds: dict[str, list[str]], thing: str, but: str) -> str:
    return _one(rng, [name for name in receptacles if thing in holds[_class(name)] and _class(name) != but])


def _receptacle_facts(receptacles: list[str], holds: dict[str, list[str]], there: set[str], known: Any) -> list[str]:
    facts = []
    for number, name in enumerate(receptacles, 1):
        facts += [f"(receptacleType {name} {_class(name)}Type)", f"(receptacleAtLocation {name} loc_bar_{number})"]
        if _class(name) in known.OPENABLE_CLASS_SET:
            facts.append(f"(openable {name})")
    return facts + [f"(canContain {name}Type {thing}Type)" for name, some in holds.items() for thing in some
                    if thing in there]


def _thing_facts(placed: list[tuple[str, str]], receptacles: list[str], known: Any) -> list[str]:
    facts = []
    for name, place in placed:
        facts += [f"(objectType {name} {_class(name)}Type)", f"(inReceptacle {name} {place})",
                  f"(objectAtLocation {name} loc_bar_{receptacles.index(place) + 1})"]
        if _class(name) not in _LAMPS:
            facts.append(f"(pickupable {name})")
        facts += [f"({kind.lower()} {name})" for kind in sorted(known.VAL_ACTION_OBJECTS)
                  if kind != "Sliceable" and _class(name) in known.VAL_ACTION_OBJECTS[kind]]
    return facts


def _written(receptacles: list[str], placed: list[tuple[str, str]], facts: list[str], goal: str) -> str:
    kinds = {"agent": ["agent1"], "location": [f"loc_bar_{number}" for number in range(len(receptacles) + 1)],
             "receptacle": receptacles, "object": [name for name, _ in placed],
             # Those that the domain's own actions name are declared in any room.
             "rtype": sorted({f"{_class(name)}Type" for name in receptacles} | _NAMED_RECEPTACLES),
             "otype": sorted({f"{_class(name)}Type" for name, _ in placed} | {"KnifeType", "ButterKnifeType"})}
    objects = "\n".join(f"{' '.join(names)} - {kind}" for kind, names in kinds.items())
    lines = "\n".join(facts)
    return (f"(define (problem household) (:domain alfred)\n(:objects {objects})\n"
            f"(:init (= (total-cost) 0) (atLocation agent1 loc_bar_0)\n{lines}\n)\n{goal}")


def _named(kind: str, number: int) -> str:
    """As the package names them: a sink's basin is "Sink_bar_1_basin", which it shows as "sinkbasin 1"."""
    return f"{kind.removesuffix('Basin')}_bar_{number}{'_basin' if kind.endswith('Basin') else ''}"


def _class(name: str) -> str:
    return name.partition("_bar_")[0] + ("Basin" if name.endswith("_basin") else "")


def _one(rng: np.random.Generator, some: list[str]) -> str:
    return some[int(rng.integers(len(some)))]
