"""Settings: what the environment says, and a clear word where it contradicts itself. The key is never shown."""

import os
import traceback
from decimal import Decimal

import pytest

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.settings import Settings, check_backend

KEY = "key-id:5ecre7-5ecre7"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    for name in os.environ:
        if name.upper().startswith(("IDEOGRAM_", "FAL_")):
            monkeypatch.delenv(name)


def test_without_an_environment_nothing_costs_money():
    settings = Settings.from_environment()
    assert (settings.backend, settings.store) == ("sandbox", "./var")
    assert (settings.prompts, settings.references) == ("data/prompts.csv", "data/references.csv")
    assert settings.fal_key is None
    assert (settings.budget_usd, settings.budget_usd_per_day) == (None, None)
    assert settings.allow_unknown_prices is False


@pytest.mark.parametrize(
    ("variable", "field", "value"),
    [
        ("IDEOGRAM_STORE", "store", "s3://bucket/pictures"),
        ("IDEOGRAM_PROMPTS", "prompts", "mine.xlsx"),
        ("IDEOGRAM_REFERENCES", "references", "faces.jsonl"),
        ("IDEOGRAM_KEY_PREFIX", "key_prefix", "acme_2"),
        ("FAL_QUEUE_URL", "fal_queue_url", "http://127.0.0.1:9000"),
        ("FAL_REST_URL", "fal_rest_url", "http://127.0.0.1:9000"),
        ("FAL_API_URL", "fal_api_url", "http://127.0.0.1:9000"),
        ("IDEOGRAM_BUDGET_USD", "budget_usd", Decimal("12.50")),
        ("IDEOGRAM_BUDGET_USD_PER_DAY", "budget_usd_per_day", Decimal(100)),
        ("IDEOGRAM_ALLOW_UNKNOWN_PRICES", "allow_unknown_prices", True),
        ("IDEOGRAM_PASS_URLS", "pass_urls", True),
    ],
)
def test_each_setting_has_its_variable(monkeypatch, variable, field, value):
    monkeypatch.setenv(variable, str(value))
    assert getattr(Settings.from_environment(), field) == value


def test_private_hosts_are_names_and_addresses_with_commas_between(monkeypatch):
    monkeypatch.setenv("IDEOGRAM_PRIVATE_HOSTS", "Intranet.example, 10.0.0.5,fd00::5")
    assert Settings.from_environment().private_hosts == ("intranet.example", "10.0.0.5", "fd00::5")


def test_an_empty_variable_is_none(monkeypatch):
    for name in ("IDEOGRAM_STORE", "IDEOGRAM_BACKEND", "IDEOGRAM_MAX_IN_FLIGHT", "FAL_KEY"):
        monkeypatch.setenv(name, "")
    settings = Settings.from_environment()
    assert (settings.store, settings.backend, settings.max_in_flight) == ("./var", "sandbox", 64)
    assert settings.fal_key is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("IDEOGRAM_BACKEND", "Fal"),
        ("IDEOGRAM_MAX_IN_FLIGHT", "many"),
        ("IDEOGRAM_MAX_IN_FLIGHT", "0"),
        ("IDEOGRAM_MAX_IN_FLIGHT", "1001"),
        ("FAL_QUEUE_URL", "http://[::1"),
        ("IDEOGRAM_BUDGET_USD", "five"),
        ("IDEOGRAM_BUDGET_USD", "0"),
        ("IDEOGRAM_BUDGET_USD", "nan"),
        ("IDEOGRAM_BUDGET_USD_PER_DAY", "-1"),
        ("IDEOGRAM_BUDGET_USD_PER_DAY", "Infinity"),
        ("IDEOGRAM_ALLOW_UNKNOWN_PRICES", "perhaps"),
        ("IDEOGRAM_PRIVATE_HOSTS", "https://intranet.example"),
        ("IDEOGRAM_PRIVATE_HOSTS", "10.0.0.0/8"),
        ("IDEOGRAM_PRIVATE_HOSTS", "intranet.example:8443"),
    ],
)
def test_a_malformed_variable_is_named(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=variable) as caught:
        Settings.from_environment()
    assert "Value error" not in str(caught.value)


def test_fal_without_a_key_says_where_to_get_one(monkeypatch):
    monkeypatch.setenv("IDEOGRAM_BACKEND", "fal")
    with pytest.raises(ConfigurationError, match=r"FAL_KEY is not set.*fal\.ai/dashboard/keys"):
        Settings.from_environment()
    monkeypatch.setenv("FAL_KEY", KEY)
    assert Settings.from_environment().backend == "fal"


@pytest.mark.parametrize(
    "url", ["https://queue.fal.run", "https://QUEUE.FAL.RUN/", "https://queue.falrun.com"]
)
def test_the_sandbox_never_asks_fals_own_queue(monkeypatch, url):
    monkeypatch.setenv("FAL_QUEUE_URL", url)
    monkeypatch.setenv("FAL_KEY", KEY)
    with pytest.raises(ConfigurationError, match="Set IDEOGRAM_BACKEND=fal to pay"):
        Settings.from_environment()


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9000", "http://fal.run.example.org"])
def test_the_sandbox_may_be_anywhere_else(url):
    check_backend("sandbox", has_key=False, queue_url=url)


@pytest.mark.parametrize(
    ("backend", "url"),
    [
        ("fal", "https://hooks.example.org"),
        ("fal", "https://hooks.example.org:8443/ideogram/"),
        ("sandbox", "https://hooks.example.org"),
        ("sandbox", "http://127.0.0.1:8189"),
        ("sandbox", "http://[::1]:8189/"),
        ("sandbox", "http://localhost:8189"),
    ],
)
def test_fal_delivers_over_https_and_a_standing_sandbox_also_on_this_machine(monkeypatch, backend, url):
    monkeypatch.setenv("FAL_QUEUE_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("FAL_KEY", KEY)
    monkeypatch.setenv("IDEOGRAM_BACKEND", backend)
    monkeypatch.setenv("IDEOGRAM_WEBHOOK_URL", url)
    assert Settings.from_environment().webhook_url == url


@pytest.mark.parametrize(
    ("backend", "url"),
    [
        ("fal", "http://127.0.0.1:8189"),
        ("sandbox", "http://hooks.example.org"),
        ("fal", "ftp://hooks.example.org"),
        ("fal", "https://"),
        ("fal", "hooks.example.org"),
        ("fal", "https://user:5ecre7@hooks.example.org"),
        ("fal", "https://hooks.example.org?token=5ecre7"),
        ("fal", "https://hooks.example.org#5ecre7"),
        ("fal", "https://[::1"),
    ],
)
def test_an_address_that_nothing_should_be_delivered_to_is_refused_and_not_repeated(
    monkeypatch, backend, url
):
    monkeypatch.setenv("FAL_QUEUE_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("FAL_KEY", KEY)
    monkeypatch.setenv("IDEOGRAM_BACKEND", backend)
    monkeypatch.setenv("IDEOGRAM_WEBHOOK_URL", url)
    with pytest.raises(ConfigurationError, match="IDEOGRAM_WEBHOOK_URL") as caught:
        Settings.from_environment()
    assert "5ecre7" not in str(caught.value)


def test_the_sandbox_inside_a_run_has_no_receiver(monkeypatch):
    monkeypatch.setenv("IDEOGRAM_WEBHOOK_URL", "http://127.0.0.1:8189")
    with pytest.raises(ConfigurationError, match="FAL_QUEUE_URL"):
        Settings.from_environment()


def test_what_asks_fal_for_nothing_needs_no_key(monkeypatch):
    monkeypatch.setenv("IDEOGRAM_BACKEND", "fal")
    assert Settings.without_key().backend == "fal"


def test_the_key_is_never_shown(monkeypatch):
    monkeypatch.setenv("FAL_KEY", KEY)
    settings = Settings.from_environment()
    assert settings.fal_key is not None
    assert settings.fal_key.get_secret_value() == KEY
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "5ecre7" not in shown


def test_an_error_about_another_variable_does_not_show_the_key(monkeypatch):
    monkeypatch.setenv("FAL_KEY", KEY)
    monkeypatch.setenv("IDEOGRAM_MAX_IN_FLIGHT", "many")
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environment()
    assert "5ecre7" not in "".join(traceback.format_exception(caught.value))


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Settings.from_environment().store = "elsewhere"


def test_owners_stand_with_commas_between(monkeypatch):
    monkeypatch.setenv("IDEOGRAM_OWNERS", "team:data, ada@example.com,")
    assert Settings.from_environment().owners == ("team:data", "ada@example.com")


def test_defaults_are_a_json_object(monkeypatch):
    monkeypatch.setenv("IDEOGRAM_DEFAULTS", '{"rendering_speed": "TURBO", "num_images": 2}')
    assert Settings.from_environment().defaults == {"rendering_speed": "TURBO", "num_images": 2}


@pytest.mark.parametrize("value", ["rendering_speed=TURBO", "[1]"])
def test_defaults_that_are_none_say_how_they_are_written(monkeypatch, value):
    monkeypatch.setenv("IDEOGRAM_DEFAULTS", value)
    with pytest.raises(ConfigurationError, match="IDEOGRAM_DEFAULTS"):
        Settings.from_environment()


@pytest.mark.parametrize("prefix", ["Acme", "a-b", "a/b", "1a", "_a", "a" * 41])
def test_a_prefix_is_a_slug(monkeypatch, prefix):
    monkeypatch.setenv("IDEOGRAM_KEY_PREFIX", prefix)
    with pytest.raises(ConfigurationError, match="IDEOGRAM_KEY_PREFIX"):
        Settings.from_environment()


def test_what_is_given_counts_before_the_environment(monkeypatch):
    monkeypatch.setenv("IDEOGRAM_STORE", "s3://bucket/pictures")
    assert Settings.from_environment(store="./mine").store == "./mine"


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("IDEOGRAM_BUGDET_USD", "IDEOGRAM_BUDGET_USD"),
        ("ideogram_bugdet_usd", "IDEOGRAM_BUDGET_USD"),
        ("IDEOGRAM_BUDGET", "IDEOGRAM_BUDGET_USD"),
        ("IDEOGRAM_BUDGET_PER_DAY", "IDEOGRAM_BUDGET_USD_PER_DAY"),
        ("IDEOGRAM_MAX_WAIT", "IDEOGRAM_MAX_WAIT_S"),
        ("IDEOGRAM_BACK_END", "IDEOGRAM_BACKEND"),
        ("IDEOGARM_BACKEND", "IDEOGRAM_BACKEND"),
        ("IDEOGRAM_PROMPT", "IDEOGRAM_PROMPTS"),
        ("IDEOGRAM_FAL_KEY", "FAL_KEY"),
        ("IDEOGRAM_FAL_QUEUE_URL", "FAL_QUEUE_URL"),
    ],
)
def test_a_near_miss_among_variables_is_an_error_and_no_budget_is_silently_ignored(
    monkeypatch, variable, meant
):
    monkeypatch.setenv(variable, "5")
    with pytest.raises(ConfigurationError, match=rf"^{variable}: .*did you mean {meant}\?"):
        Settings.without_key()


@pytest.mark.parametrize("variable", ["IDEOGRAM_TEAM", "IDEOGRAM_API_KEY", "IDEOGRAM_LATER_SETTING"])
def test_another_unknown_variable_is_a_warning_given_once(monkeypatch, caplog, variable):
    monkeypatch.setenv(variable, "secret")
    Settings.without_key()
    Settings.without_key()
    assert [record.getMessage() for record in caplog.records] == [
        f"{variable} is set, and is no setting of this version: it is ignored."
    ]


@pytest.mark.parametrize(
    "variable",
    [
        "IDEOGRAM_SERVICE_HOST",
        "IDEOGRAM_PORT",
        "IDEOGRAM_PORT_80_TCP_ADDR",
        "IDEOGRAM_STORE_SERVICE_PORT_HTTP",
        "IDEOGRAM_REVIEWS_PORT_8080_TCP",
        "IDEOLOGY",
    ],
)
def test_what_kubernetes_sets_for_a_service_is_no_setting(monkeypatch, caplog, variable):
    monkeypatch.setenv(variable, "tcp://10.0.0.1:80")
    Settings.without_key()
    assert caplog.records == []


def test_extra_columns_have_commas_between(monkeypatch):
    monkeypatch.setenv("IDEOGRAM_EXTRA_COLUMNS", "camera, Reference No")
    assert Settings.without_key().extra_columns == ("camera", "Reference No")
