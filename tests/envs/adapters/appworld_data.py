"""A data folder in AppWorld's own layout, with tasks of ours: its own are a download.

    PYTHON_WITH_APPWORLD appworld_data.py ROOT [--databases]

Each task asks for something in the person's profile. With `--databases` the package itself makes the data bases that
the real server needs; without it the profile that the stand-in (appworld_standin) reads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

WHEN = "2023-05-18T12:00:00"
SETS = {"train": range(4), "dev": range(4, 5), "test_normal": range(5, 8), "test_challenge": range(8, 11)}
CITIES = ("Arden", "Brill", "Corby", "Dunmow", "Esher", "Frome", "Goole", "Hythe", "Ilkley", "Jarrow", "Keswick")
SOLUTION = '''def solution(apis, requester):
    home = [one for one in apis.supervisor.show_addresses() if one["name"] == "Home"][0]
    apis.supervisor.complete_task(answer=home["city"])
'''
EVALUATION = '''def evaluate(test, public_data, private_data, main_user, models, ground_truth_answer):
    with test(
        """
        assert answers match.
        """
    ):
        test.answer(models.end.supervisor.Task.all()[0].to_dict(humanize=True)["answer"], ground_truth_answer)

    with test(
        """
        assert that nothing else was changed.
        """
    ):
        test.case(models.changed_model_names(), "==", set())
'''
METADATA = {"difficulty": 1, "mode": "full", "num_apps": 0, "num_apis": 2, "num_api_calls": 2,
            "num_solution_code_lines": 2}
TESTS = [{"requirement": "assert answers match.", "label": "no_op_fail"},
         {"requirement": "assert that nothing else was changed.", "label": "no_op_pass"}]


def person(index: int) -> dict[str, Any]:
    """The supervisor of a task."""
    return {"first_name": "Ada", "last_name": f"Number{index}", "email": f"ada{index}@example.com",
            "phone_number": f"555000{index:04d}"}


def address(index: int) -> dict[str, Any]:
    """Their home."""
    return {"name": "Home", "street_address": "1 Mill Lane", "city": CITIES[index], "state": "Kent",
            "country": "England", "zip_code": 12345}


def write_task(root: Path, index: int) -> str:
    """Its specs and its ground truth."""
    task_id, city = f"{index:07x}_1", CITIES[index]
    folder = root / "data" / "tasks" / task_id
    truth = folder / "ground_truth"
    truth.mkdir(parents=True)
    specs = {"instruction": f"In which city is my home, as number {index} knows it?", "supervisor": person(index),
             "datetime": WHEN, "db_version": "0.1.0"}
    (folder / "specs.json").write_text(json.dumps(specs))
    for name, value in {"answer": city, "public_data": {}, "private_data": {}, "test_data": TESTS,
                        "required_apps": [], "api_calls": [], "metadata": METADATA}.items():
        (truth / f"{name}.json").write_text(json.dumps(value))
    (truth / "evaluation.py").write_text(EVALUATION)
    if index in SETS["train"] or index in SETS["dev"]:  # as in the original: the test sets' solutions are not given
        (truth / "solution.py").write_text(SOLUTION)
        (truth / "compiled_solution.py").write_text(SOLUTION)
    return task_id


def write_databases(root: Path, index: int, task_id: str) -> None:
    """The person's profile in data bases that the package makes; other apps are empty."""
    import os

    os.environ["APPWORLD_ROOT"] = str(root)
    from appworld.apps import get_all_apps
    from appworld.collections.models import ModelCollection

    folder = root / "data" / "tasks" / task_id / "dbs"
    folder.mkdir()
    apps = [*get_all_apps(skip_admin=True), "admin"]
    models: Any = ModelCollection.load(to_db_home_path=f":memory:task_input-{task_id}", from_db_home_path=str(folder),
                                       force_empty_apps=apps, create_db=True)
    known = person(index) | {"birthday": "1990-01-01", "sex": "female"}
    models.admin.MainUser.create_save(**known)
    supervisor = models.supervisor.Supervisor.create_save(**known)
    models.supervisor.Address.create_save(supervisor_id=supervisor.id, **address(index))
    models.supervisor.Task.create_save(supervisor_id=supervisor.id, instruction="Find the city.")
    models.save(db_home_path=str(folder), app_names=apps, delete_if_exists=True, format="full")


def write_api_docs(root: Path) -> None:
    """What the package says of its own APIs."""
    from appworld.collections.api_docs import ApiDocCollection

    folder = root / "data" / "api_docs" / "standard"
    folder.mkdir(parents=True)
    for app, apis in ApiDocCollection.build().items():
        known = {name: {**doc, "canary_string": ""} for name, doc in apis.items()}
        (folder / f"{app}.json").write_text(json.dumps(known))


def main(root: Path, databases: bool) -> None:
    """Write it all."""
    (root / "data" / "datasets").mkdir(parents=True)
    for name, indices in SETS.items():
        ids = [write_task(root, index) for index in indices]
        (root / "data" / "datasets" / f"{name}.txt").write_text("\n".join(ids) + "\n")
        for index, task_id in zip(indices, ids):
            if databases:
                write_databases(root, index, task_id)
            else:
                profile = json.dumps([address(index)])
                (root / "data" / "tasks" / task_id / "addresses.json").write_text(profile)
    if databases:
        write_api_docs(root)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--databases" in sys.argv)
