import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestLeanFeast:
    def test_the_way_to_an_online_row_loads_neither_torch_nor_training_nor_mlflow(self):
        loaded = run(
            "import sys\n"
            "import penstock.features.online, penstock.features.store\n"
            "import penstock.features.sqlite_online_store\n"
            "heavy = ('torch', 'mlflow', 'ray', 'sklearn', 'xgboost', 'penstock.training')\n"
            "print([name for name in heavy if name in sys.modules])"
        )
        assert loaded == "[]"

    def test_torch_and_typeguard_are_themselves_again_afterwards(self):
        # In one process: Feast's import is what takes the time.
        assert (
            run(
                "import penstock.features, typeguard\n"
                "before = typeguard.typechecked\n"
                "import feast\n"
                "print(typeguard.typechecked is before, feast.__name__, feast.__version__ != '')\n"
                "from feast.infra.offline_stores.offline_store import get_torch\n"
                "print(get_torch().tensor([1.5]).item())"
            )
            == "True feast True\n1.5"
        )
