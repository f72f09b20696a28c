from compose.environment import child_environment, new_token


def environment(inherited: dict[str, str], gpus: tuple[str, ...] = (), disable_proxy: bool = True) -> dict[str, str]:
    return child_environment(inherited, gpus=gpus, token="secret", num_processes=10_000, disable_proxy=disable_proxy)


def test_proxies_are_hidden_and_local_traffic_is_direct() -> None:
    made = environment({"HTTP_PROXY": "p", "https_proxy": "p", "ALL_PROXY": "p", "NO_PROXY": "x", "HOME": "/h"})
    assert not {"HTTP_PROXY", "https_proxy", "ALL_PROXY"} & set(made)
    assert made["NO_PROXY"] == made["no_proxy"] == "127.0.0.1,localhost"
    assert made["HOME"] == "/h"


def test_proxies_are_kept_on_request() -> None:
    assert environment({"HTTP_PROXY": "p"}, disable_proxy=False)["HTTP_PROXY"] == "p"


def test_a_child_sees_its_own_gpus_only() -> None:
    assert environment({"CUDA_VISIBLE_DEVICES": "0,1,2"}, gpus=("1", "2"))["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert environment({"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == ""


def test_cores_are_shared_on_a_cpu_and_a_given_number_is_kept() -> None:
    assert environment({})["OMP_NUM_THREADS"] == "1"
    assert environment({"OMP_NUM_THREADS": "5"})["OMP_NUM_THREADS"] == "5"
    assert "OMP_NUM_THREADS" not in environment({}, gpus=("0",))


def test_tokens_are_long_and_never_the_same() -> None:
    assert len(new_token()) >= 32
    assert new_token() != new_token()
