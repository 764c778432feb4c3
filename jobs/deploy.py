"""Deploys a model version from inside a Ray: `penstock deploy` submits it to another cluster."""

import argparse

from penstock.cluster.job import job


def main() -> None:
    """Parse, deploy or remove, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("use_case", help="a folder of the feature repo")
    parser.add_argument("--version", type=int, help="the model version; without it, the champion")
    parser.add_argument("--remove", action="store_true", help="stop serving the model instead")
    arguments = parser.parse_args()
    # On no budget: a way back, or an end, must be open however much was spent.
    with job("deploy") as running:
        from penstock.registry.versions import resolve
        from penstock.serving.deploy import deploy, undeploy
        from penstock.training.declarations import load_model

        model = load_model(running.settings, arguments.use_case).name
        if arguments.remove:
            running.finish({"model": model, "was_served": undeploy(running.settings, model)})
            return
        version = resolve(running.settings, model, arguments.version)
        running.finish(deploy(running.settings, version, report=print))


if __name__ == "__main__":
    main()
