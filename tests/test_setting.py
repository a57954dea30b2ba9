"""Settings: defaults, overrides by text and by value, and what is refused."""

import pytest

from actornet.errors import UsageError
from actornet.setting import Setting, assign, resolve, setting, settings_of


class Base:
    address = setting("203.0.113.1", "external address")
    ports = setting(100)


class Function(Base):
    ports = setting(200, "ports per host")
    share = setting(0.5)
    strict = setting(False)
    networks = setting(["10.0.0.0/8"])


def test_defaults_are_read_on_instances_and_declarations_on_classes() -> None:
    class Untouched(Base):
        pass

    assert Untouched().address == "203.0.113.1"
    declared = vars(Base)["address"]
    assert isinstance(declared, Setting)
    assert (declared.name, declared.doc, declared.type_name) == ("address", "external address", "str")


def test_overrides_by_text() -> None:
    values = resolve(
        Function, {"address": "192.0.2.1", "ports": " 7 ", "share": "1e-3", "strict": "Yes", "networks": "a, b"}
    )
    assert values == {"address": "192.0.2.1", "ports": 7, "share": 0.001, "strict": True, "networks": ["a", "b"]}
    assert resolve(Function, {"networks": ""})["networks"] == []
    assert resolve(Function, {}) == {
        "address": "203.0.113.1",
        "ports": 200,
        "share": 0.5,
        "strict": False,
        "networks": ["10.0.0.0/8"],
    }


def test_overrides_by_value() -> None:
    values = resolve(Function, {"ports": 7, "share": 1, "strict": True, "networks": ["a"]})
    assert values["share"] == 1.0 and type(values["share"]) is float
    assert (values["ports"], values["strict"], values["networks"]) == (7, True, ["a"])


@pytest.mark.parametrize(
    ("name", "given", "type_name"),
    [
        ("ports", "many", "int"),
        ("ports", "1.5", "int"),
        ("ports", True, "int"),
        ("ports", 1.5, "int"),
        ("share", "nan", "float"),
        ("share", "half", "float"),
        ("strict", "maybe", "bool"),
        ("strict", 1, "bool"),
        ("address", 5, "str"),
        ("networks", [1], "list of str"),
        ("networks", {"a": 1}, "list of str"),
    ],
)
def test_a_wrong_value_names_setting_and_type(name: str, given: object, type_name: str) -> None:
    with pytest.raises(UsageError, match=f"setting '{name}' must be {type_name}, not "):
        resolve(Function, {name: given})


@pytest.mark.parametrize(
    ("bounds", "given", "said"),
    [
        ({"least": 1, "most": 65535}, "0", "must be 1 to 65535, not '0'"),
        ({"least": 1, "most": 65535}, 65536, "must be 1 to 65535, not 65536"),
        ({"least": 1}, "-3", "must be 1 or more, not '-3'"),
        ({"most": 9}, "10", "must be 9 or less, not '10'"),
    ],
)
def test_a_value_out_of_bounds_is_refused(bounds: dict[str, float], given: object, said: str) -> None:
    class Bounded:
        port = setting(5, "a port", **bounds)

    with pytest.raises(UsageError, match=f"setting 'port' {said}"):
        resolve(Bounded, {"port": given})
    assert resolve(Bounded, {"port": "7"}) == {"port": 7}


def test_only_numbers_have_bounds() -> None:
    with pytest.raises(UsageError, match="least and most are for numbers"):
        setting("x", "text", least=1)


def test_an_unknown_setting_lists_the_known() -> None:
    with pytest.raises(
        UsageError, match=r"Function has no setting 'adress'; .*: address, networks, ports, share, strict"
    ):
        resolve(Function, {"adress": "x"})


def test_assigned_values_belong_to_one_class_and_may_be_assigned_again() -> None:
    class First(Base):
        pass

    class Second(Base):
        pass

    assign(First, resolve(First, {"ports": "1"}))
    assign(Second, resolve(Second, {"ports": "2"}))
    assert (First().ports, Second().ports, Base().ports) == (1, 2, 100)
    assert settings_of(First)["ports"].default == 100
    assign(First, resolve(First, {}))
    assert First().ports == 100


@pytest.mark.parametrize("default", [None, {}, [1], (1,)])
def test_a_default_without_a_type_is_refused(default: object) -> None:
    with pytest.raises(UsageError, match="a setting's default is one of int, float, bool, str, list of str"):
        setting(default)


def test_a_check_says_what_will_not_do() -> None:
    def even(value: int) -> None:
        if value % 2:
            raise ValueError(f"{value} is odd")

    class Checked:
        size = setting(4, "an even number", check=even)

    assert resolve(Checked, {"size": "6"}) == {"size": 6}
    for given in ("5", 5):
        with pytest.raises(UsageError, match="setting 'size': 5 is odd"):
            resolve(Checked, {"size": given})
