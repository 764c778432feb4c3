"""Deploys a model version from inside a Ray: `penstock deploy` submits it to another cluster.

A rollout always runs as this job: it goes on when the terminal that asked for it is closed.
"""

import argparse

from penstock.cluster.job import job


def main() -> None:
    """Parse, deploy, roll out, go back or remove, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("use_case", help="a folder of the feature repo")
    parser.add_argument("--version", type=int, help="the model version; without it, the champion")
    parser.add_argument("--rollout", metavar="JSON", help="a RolloutPlan to carry out")
    parser.add_argument("--back", metavar="REASON", help="go back to what served before")
    parser.add_argument("--remove", action="store_true", help="stop serving the model instead")
    arguments = parser.parse_args()
    # On no budget: a way back, or an end, must be open however much was spent.
    with job("deploy") as running:
        from penstock.registry.versions import resolve
        from penstock.serving.deploy import deploy, undeploy
        from penstock.serving.rolling import roll_out
        from penstock.serving.rollout import RolloutPlan
        from penstock.serving.way_back import roll_back
        from penstock.training.declarations import load_model

        settings = running.settings
        model = load_model(settings, arguments.use_case).name
        if arguments.remove:
            running.finish({"model": model, "was_served": undeploy(settings, model)})
            return
        if arguments.back is not None:
            running.finish(roll_back(settings, model, reason=arguments.back, report=print))
            return
        if arguments.rollout is None:
            version = resolve(settings, model, arguments.version)
            running.finish(deploy(settings, version, report=print))
            return
        plan = RolloutPlan.model_validate_json(arguments.rollout)
        version = resolve(settings, model, plan.to_version)
        done = roll_out(settings, version, plan, report=print, progress=running.progress)
        running.finish(done)


if __name__ == "__main__":
    main()
