"""Settings: where each comes from, which one wins, and what is said of a wrong one."""

from __future__ import annotations

import dataclasses
import ipaddress
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.config import Config, ConsulConfig
from discovery.errors import ConfigurationError


def wrong(env: dict[str, str], **overrides) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Config.from_env(env, **overrides)
    return str(caught.value)


# --- CONSUL_* ------------------------------------------------------------------------------------------


def test_without_variables_it_is_the_agent_on_this_host():
    consul = Config.from_env({}).consul
    assert consul == ConsulConfig()
    assert consul.url == "http://127.0.0.1:8500"
    assert not consul.explicit


@pytest.mark.parametrize(
    ("variable", "value", "setting", "meaning"),
    [
        ("CONSUL_HTTP_SSL", "true", "tls", True),
        ("CONSUL_HTTP_SSL", "0", "tls", False),
        ("CONSUL_HTTP_SSL_VERIFY", "false", "verify", False),
        ("CONSUL_HTTP_SSL_VERIFY", "T", "verify", True),
        ("CONSUL_CACERT", "/ca.pem", "cacert", "/ca.pem"),
        ("CONSUL_CAPATH", "/ca", "capath", "/ca"),
        ("CONSUL_CLIENT_CERT", "/c.pem", "client_cert", "/c.pem"),
        ("CONSUL_CLIENT_KEY", "/k.pem", "client_key", "/k.pem"),
        ("CONSUL_TLS_SERVER_NAME", "server.dc1.consul", "tls_server_name", "server.dc1.consul"),
        ("CONSUL_HTTP_TOKEN", "t-1", "token", "t-1"),
        ("CONSUL_HTTP_TOKEN_FILE", "/t", "token_file", "/t"),
        ("CONSUL_HTTP_AUTH", "ann:s3cret", "auth", "ann:s3cret"),
        ("CONSUL_NAMESPACE", "team", "namespace", "team"),
        ("CONSUL_PARTITION", "east", "partition", "east"),
    ],
)
def test_a_variable_of_consul_means_what_it_means_to_consul(variable, value, setting, meaning):
    assert getattr(Config.from_env({variable: value}).consul, setting) == meaning
    default = getattr(ConsulConfig(), setting)
    assert getattr(Config.from_env({variable: ""}).consul, setting) == default  # empty is unset


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("10.0.0.1:8501", "http://10.0.0.1:8501"),
        ("consul.example", "http://consul.example:8500"),
        ("http://10.0.0.1:8501", "http://10.0.0.1:8501"),
        ("http://10.0.0.1:8501/", "http://10.0.0.1:8501"),
        ("HTTP://Consul.Example", "http://consul.example:80"),
        ("https://consul.example", "https://consul.example:443"),
        ("consul://consul.example", "http://consul.example:8500"),
        ("consul-tls://10.0.0.1:8501", "https://10.0.0.1:8501"),
        ("[::1]:8500", "http://[::1]:8500"),
        ("http://[fd00::1]:8500", "http://[fd00::1]:8500"),
        ("unix:///run/consul.sock", "unix:///run/consul.sock"),
        ("unix:///run/%41?b@c.sock", "unix:///run/%41?b@c.sock"),
        ("consul-unix:///run/consul.sock", "unix:///run/consul.sock"),
        (" 10.0.0.1:8501\n", "http://10.0.0.1:8501"),
    ],
)
def test_an_address_may_be_written_in_many_ways(address, url):
    consul = Config.from_env({"CONSUL_HTTP_ADDR": address}).consul
    assert consul.url == url
    assert consul.explicit


def test_a_plain_url_does_not_undo_tls():
    for address in ("10.0.0.1:8501", "http://10.0.0.1:8501", "consul://10.0.0.1:8501"):
        env = {"CONSUL_HTTP_SSL": "true", "CONSUL_HTTP_ADDR": address}
        assert Config.from_env(env).consul.url == "https://10.0.0.1:8501"


def test_another_address_leaves_the_credentials():
    consul = ConsulConfig(token="t-1", cacert="/ca.pem", socket_path="/run/consul.sock")
    moved = consul.at("10.0.0.1:8501", origin="a test")
    assert (moved.token, moved.cacert, moved.socket_path) == ("t-1", "/ca.pem", None)


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("ftp://10.0.0.1", "unknown scheme 'ftp'; use http, https, unix"),
        ("10.0.0.1:port", "write host:port, for example 127.0.0.1:8500"),
        ("10.0.0.1:99999", "write host:port, for example 127.0.0.1:8500"),
        ("10.0.0.1:0", "nothing listens on port 0, write 1 to 65535"),
        ("::1", "write host:port, for example 127.0.0.1:8500"),
        ("http://[::1", "write host:port, for example 127.0.0.1:8500"),
        (":8500", "the host is missing, write host:port"),
        ("http:///v1", "the host is missing, write host:port"),
        ("unix://", "the path is missing, write unix:///run/consul.sock"),
        ("http://10.0.0.1:8500/prefix", "Consul has no use for 'prefix', write host:port alone"),
        ("http://10.0.0.1:8500?token=t", "Consul has no use for '?token=t', write host:port alone"),
    ],
)
def test_a_wrong_address_is_refused_with_what_would_be_right(address, complaint):
    message = wrong({"CONSUL_HTTP_ADDR": address})
    assert message.startswith(f"cannot use the Consul address {address!r} from CONSUL_HTTP_ADDR: ")
    assert complaint in message


@pytest.mark.parametrize("address", ["http://ann:s3cret@10.0.0.1:8500", "ann:s3cret@10.0.0.1:x", "s3cret@h"])
def test_a_password_in_an_address_is_refused_without_showing_it(address):
    message = wrong({"CONSUL_HTTP_ADDR": address})
    assert "CONSUL_HTTP_ADDR" in message
    assert "CONSUL_HTTP_AUTH" in message
    assert "s3cret" not in message


@pytest.mark.parametrize("variable", ["CONSUL_HTTP_SSL", "CONSUL_HTTP_SSL_VERIFY"])
def test_a_wrong_flag_is_refused(variable):
    assert wrong({variable: "maybe"}) == f"{variable}='maybe' is neither true nor false; write true or false"


def test_secrets_do_not_appear_in_the_representation():
    assert "s3cret" not in repr(Config(consul=ConsulConfig(token="s3cret", auth="ann:s3cret")))


hosts = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z][a-z0-9]{0,8}){0,2}", fullmatch=True),
)


@given(hosts, st.integers(1, 65535), st.booleans())
def test_an_address_survives_being_written_and_read(host, port, tls):
    consul = ConsulConfig(host=host, port=port, tls=tls, explicit=True)
    assert ConsulConfig().at(consul.url, origin="a test") == consul


@given(hosts, st.integers(1, 65535))
def test_host_and_port_are_what_was_written(host, port):
    try:
        written = f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        written = host
    consul = ConsulConfig().at(f"{written}:{port}", origin="a test")
    assert (consul.host, consul.port, consul.tls) == (host, port, False)


@given(st.text())
def test_any_text_is_an_address_or_a_wrong_setting(text):
    try:
        consul = ConsulConfig().at(text, origin="a test")
    except ConfigurationError:
        return
    assert consul.socket_path or (consul.host and 0 < consul.port < 65536)


# --- DISCOVERY_* and arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "raw", "value", "override"),
    [
        ("dc", "east", "east", "west"),
        ("timeout", "2.5", 2.5, 3.0),
        ("wait", "30", 30.0, 20.0),
        ("idle", "60", 60.0, float("inf")),
        ("max_watches", "8", 8, 16),
    ],
)
def test_an_argument_beats_its_variable_and_a_variable_its_default(setting, raw, value, override):
    env = {f"DISCOVERY_{setting.upper()}": raw}
    default = getattr(Config(), setting)
    assert getattr(Config.from_env({}), setting) == default
    assert getattr(Config.from_env({f"DISCOVERY_{setting.upper()}": ""}), setting) == default
    assert getattr(Config.from_env(env), setting) == value
    assert getattr(Config.from_env(env, **{setting: override}), setting) == override
    assert getattr(Config().but(**{setting: override}), setting) == override


@pytest.mark.parametrize(
    ("setting", "raw", "value"),
    [
        ("cache", "off", None),
        ("cache", "/var/cache/x", "/var/cache/x"),
        ("share", "off", None),
        ("share", "auto", "auto"),
        ("dns", "off", ()),
        ("dns", "auto", ("auto",)),
        ("dns", "127.0.0.1:8600, 10.0.0.53", ("127.0.0.1:8600", "10.0.0.53")),
        ("failover", "dc2", ("dc2",)),
        ("failover", "dc2,dc3", ("dc2", "dc3")),
    ],
)
def test_a_string_as_argument_means_what_it_means_in_the_variable(setting, raw, value):
    assert getattr(Config.from_env({f"DISCOVERY_{setting.upper()}": raw}), setting) == value
    assert getattr(Config.from_env({}, **{setting: raw}), setting) == value
    assert getattr(Config().but(**{setting: raw}), setting) == value
    if value != raw:
        assert getattr(Config().but(**{setting: value}), setting) == value


def test_several_words_may_be_any_sequence():
    config = Config().but(dns=["127.0.0.1:8600"], failover=["dc2"])
    assert (config.dns, config.failover) == (("127.0.0.1:8600",), ("dc2",))
    assert Config(dns=("auto",)).but(dns=None).dns == ()
    hash(config)


def test_an_address_as_argument_is_that_of_consul():
    env = {"CONSUL_HTTP_ADDR": "10.0.0.1:8501", "CONSUL_HTTP_TOKEN": "t-1"}
    for config in (Config.from_env(env, consul="10.0.0.2"), Config.from_env(env).but(consul="10.0.0.2")):
        assert config.consul == Config.from_env({**env, "CONSUL_HTTP_ADDR": "10.0.0.2"}).consul
    assert wrong({}, consul="ftp://10.0.0.2").startswith(
        "cannot use the Consul address 'ftp://10.0.0.2' from consul=: unknown scheme"
    )
    assert wrong({}, consul=8500) == "consul=8500 is not possible: give an address, host:port"


def test_what_an_argument_fixes_replaces_what_the_environment_does():
    env = {"DISCOVERY_WEB": "10.0.0.1:80"}
    config = Config.from_env(env, static={"python-micro-service": "10.0.0.2:80", "API": "10.0.0.3:80"})
    assert config.static == {"PYTHON_MICRO_SERVICE": "10.0.0.2:80", "API": "10.0.0.3:80"}
    assert wrong({}, static={"web": ["10.0.0.1:80"]}) == (
        "static={'web': ['10.0.0.1:80']} is not possible: give 'host:port', or 'host:port,host:port'"
    )
    assert wrong({}, static={"web": "10.0.0.1:80,10.0.0.2"}).startswith(
        "'10.0.0.2' in static={'web': '10.0.0.1:80,10.0.0.2'} is no address: write host:port"
    )


def test_the_process_environment_is_read_when_none_is_given(monkeypatch):
    monkeypatch.setenv("DISCOVERY_DC", "east")
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "10.0.0.1:8501")
    config = Config.from_env()
    assert (config.dc, config.consul.port) == ("east", 8501)
    monkeypatch.delenv("DISCOVERY_DC")
    assert Config.from_env().dc is None
    assert os.environ["CONSUL_HTTP_ADDR"] == "10.0.0.1:8501"


@pytest.mark.parametrize("setting", ["timeout", "wait", "idle"])
@pytest.mark.parametrize("raw", ["0", "-1", "soon", "nan"])
def test_a_wrong_duration_is_refused_wherever_it_comes_from(setting, raw):
    variable = f"DISCOVERY_{setting.upper()}"
    assert wrong({variable: raw}).startswith(f"{variable}={raw!r} is not possible: give seconds above 0")
    value = raw if raw == "soon" else float(raw)
    for build in (lambda: Config(**{setting: value}), lambda: Config().but(**{setting: value})):
        with pytest.raises(ConfigurationError, match=f"^{setting}={value!r} is not possible"):
            build()


@pytest.mark.parametrize(("setting", "limit"), [("wait", "600"), ("timeout", "86400")])
def test_a_duration_that_cannot_be_waited_for_is_refused(setting, limit):
    for raw in (f"{limit}.1", "inf"):
        message = wrong({f"DISCOVERY_{setting.upper()}": raw})
        assert f"give seconds above 0 and at most {limit}" in message


@pytest.mark.parametrize("raw", ["0", "-3", "many", "1.5"])
def test_a_wrong_number_of_watches_is_refused(raw):
    message = wrong({"DISCOVERY_MAX_WATCHES": raw})
    assert message == (
        f"DISCOVERY_MAX_WATCHES={raw!r} is not possible: give a whole number of at least 1, for example 64"
    )
    with pytest.raises(ConfigurationError, match=r"^max_watches=0 is not possible"):
        Config(max_watches=0)


def test_an_unknown_setting_is_named_with_those_that_exist():
    message = wrong({}, timout=3)
    assert message.startswith("there is no setting 'timout'; the settings are consul, dc, ")
    with pytest.raises(ConfigurationError, match="there is no setting 'timout'"):
        Config().but(timout=3)


def test_settings_are_values():
    assert Config() == Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().dc = "east"
