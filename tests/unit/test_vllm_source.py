from types import SimpleNamespace

import pytest

from axonize_core.recorder import get_recorder
from axonize_vllm.source import WORKERS, engine_id, engine_source, frontend_source, worker_source


def config(**parallel):
    known = {"data_parallel_size": 1, "data_parallel_index": 0, "tensor_parallel_size": 1, "pipeline_parallel_size": 1}
    return SimpleNamespace(
        instance_id="1f0c3",
        model_config=SimpleNamespace(served_model_name="tiny", model="/models/tiny"),
        parallel_config=SimpleNamespace(**known | parallel),
        cache_config=SimpleNamespace(block_size=16),
    )


def stored(source_id):
    return dict(get_recorder().sources)[source_id]


def attributes(source_id):
    return dict(stored(source_id)[5])


def test_processes_of_one_engine_share_its_id():
    """The engine core, its front end and its workers name the same engine, and their roles."""
    sources = [
        engine_source(config()),
        frontend_source(config()),
        worker_source(config(), 3, ("cuda", 1, "GPU-1")),
    ]
    assert {attributes(source)["ai.engine.id"] for source in sources} == {"1f0c3/0"}
    assert [attributes(source)["ai.role"] for source in sources] == ["engine", "frontend", "worker"]
    assert attributes(sources[2])["ai.rank"] == "3"
    assert [stored(source)[4] for source in sources] == [WORKERS, WORKERS, ("cuda", 1, "GPU-1")]


def test_same_configuration_is_one_source():
    """Asked twice, the id is the same, so that a second caller makes no second engine."""
    assert engine_source(config()) == engine_source(config())
    assert engine_source(config()) != engine_source(config(data_parallel_index=1))


def test_sizes_and_ranks_are_named_where_there_are_several():
    """One worker needs no sizes; four in two ranks are told, as text."""
    assert "ai.tensor_parallel.size" not in attributes(engine_source(config()))
    assert "ai.data_parallel.rank" not in attributes(engine_source(config()))
    found = attributes(engine_source(config(tensor_parallel_size=2, data_parallel_size=2, data_parallel_index=1)))
    assert found["ai.tensor_parallel.size"] == "2"
    assert found["ai.data_parallel.size"] == "2"
    assert found["ai.data_parallel.rank"] == "1"
    assert found["ai.kv_cache.block_size"] == "16"


def test_rank_is_kept_where_vllm_resets_it():
    """Independent ranks are told that they are alone, with rank 0; their index still says which they are."""
    assert engine_id(config(data_parallel_rank=0, data_parallel_size=1, data_parallel_index=2)) == "1f0c3/2"
    older = SimpleNamespace(instance_id="x", parallel_config=SimpleNamespace(data_parallel_rank=1))
    assert engine_id(older) == "x/1"


@pytest.mark.parametrize(
    ("served", "name"), [("tiny", "tiny"), (["a", "b"], "a"), (None, "/models/tiny"), ([], "/models/tiny")]
)
def test_model_is_the_first_name_it_is_served_under(served, name):
    """Else its path, as vLLM's own metrics do it."""
    given = config()
    given.model_config.served_model_name = served
    assert stored(engine_source(given))[2] == name


def test_configuration_of_an_unknown_version_is_no_error():
    """Nothing is there: the source has what it has, and nothing is raised."""
    assert attributes(engine_source(SimpleNamespace()))["ai.engine.id"] == "/0"
    assert stored(worker_source(SimpleNamespace(), 0, ("cpu", 0, None)))[2] == ""
