"""cluster.yaml: what Ray's own launcher thinks of it, without a network, and what it must not do."""

import re
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_rays_launcher_accepts_it(config):
    validate_config(prepare_config(config))


def variant(name):
    """What the comments at the top give in place of the provider's lines, as YAML; … is what only the user knows."""
    top = (ROOT / "cluster.yaml").read_text().partition("\ncluster_name")[0]
    lines = re.search(rf"^#   {name} (.*(?:\n#   \s+.*)*)", top, re.MULTILINE)[1].replace("\n#", "\n").replace("…", "x")
    lines = lines.partition(", without")[0]
    return {
        key: yaml.safe_load(value)
        for key, value in re.findall(r"(provider|node_config): (\{[^#]*?\})\s*(?=node_|$)", lines)
    }


def test_rays_launcher_accepts_it_on_gcp(config):
    other = variant("GCP")
    assert set(other) == {"provider", "node_config"}
    config["provider"] = other["provider"]
    for kind in config["available_node_types"].values():
        kind["node_config"] = other["node_config"]
    validate_config(prepare_config(config))


def test_rays_launcher_accepts_it_on_prem(config):
    config["provider"] = variant("on-prem")["provider"] | {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}
    del config["available_node_types"], config["head_node_type"]
    validate_config(prepare_config(config))


def test_ray_is_the_pinned_one_and_nothing_is_installed_from_elsewhere(config):
    [pinned] = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    text = (ROOT / "cluster.yaml").read_text()
    assert config["docker"]["image"] == f"rayproject/ray:{pinned}-py311"
    assert set(re.findall(r"\b\d+\.\d+\.\d+\b", text)) == {pinned, "127.0.0"}
    assert not re.search(r"nightly|latest|https?://", text)


def test_nobody_gets_in_without_the_token(config):
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert "--dashboard-host=127.0.0.1" in " ".join(starts)
    assert "0.0.0.0" not in " ".join(starts)


def test_the_package_is_shipped_where_it_shadows_nothing(config):
    mounted = [remote for remote, local in config["file_mounts"].items() if local == "."]
    assert mounted == ["~/kvstream-src"]
    assert any("kvstream-src[demo]" in command for command in config["setup_commands"])
    assert {".venv", ".git", "/records*", "/report*"} <= set(config["rsync_exclude"])
