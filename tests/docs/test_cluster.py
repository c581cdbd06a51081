"""What `docs` has for clusters can be read, and names what there is."""

import re
import subprocess
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
CLUSTER = DOCS / "cluster"


@pytest.mark.parametrize("name", ["slurm.sbatch", "two_nodes.sh"])
def test_scripts_are_of_the_shell(name: str) -> None:
    subprocess.run(["bash", "-n", CLUSTER / name], check=True)


def test_the_job_of_kubernetes_meets_where_its_service_is() -> None:
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"--nnodes={job['spec']['completions']}" in command
    meeting = f"{job['metadata']['name']}-0.{service['metadata']['name']}:29500"
    assert f"--rdzv-endpoint={meeting}" in command


def test_files_that_are_named_are_there() -> None:
    text = (DOCS / "use" / "many_machines.md").read_text()
    links = re.findall(r"\{download\}`[^`<]*</([^>`]+)>`", text)  # from the folder of the docs
    assert len(links) == 4
    for link in links:
        assert (DOCS / link).is_file(), link
