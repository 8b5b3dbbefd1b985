"""What a runtime asks for: the environment and stdin, checked in the order the reference checks them (skel)."""

from __future__ import annotations

from cnikit import jsontext, result, spec
from cnikit.errors import CniError, invalid_config, invalid_environment
from cnikit.fields import Fields, type_name
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Attachment(Value):
    """Whose state something is: one interface of one container on one network (specification section 2)."""

    network: str
    container: str
    ifname: str


class Request(Value):
    """One call of a plugin, its common parts checked."""

    verb: str
    attachment: Attachment
    netns: str  # CNI_NETNS as given, "" when a DEL has none
    args: str  # CNI_ARGS
    path: str  # CNI_PATH
    version: str  # the configuration's cniVersion
    config: Fields
    stdin: bytes  # the configuration as it came, for delegates
    environ: Mapping[str, str]  # as the runtime gave it, for delegates

    def prev_result(self) -> result.Result | None:
        """Return prevResult, None when there is none. Raises CniError when it cannot be read."""
        if not self.config.has("prevResult"):
            return None
        return result.parse(self.config.object("prevResult"), self.version)

    def remembered(self) -> result.Result:
        """Return prevResult, an empty one where it is missing or cannot be read: DEL goes on without."""
        try:
            return self.prev_result() or result.Result()
        except CniError:
            return result.Result()

    def arguments(self) -> dict[str, str]:
        """Return CNI_ARGS by key.

        A key this suite does not know is refused unless IgnoreUnknown=1 is among them, as the reference does;
        a closing semicolon is forgiven. An empty value of a key that it knows is no wish, and left out.
        """
        pairs: dict[str, str] = {}
        args = self.args.removesuffix(";")
        for piece in args.split(";") if args else ():
            key, equals, value = piece.partition("=")
            if not equals or "=" in value:
                raise invalid_environment("CNI_ARGS", f"invalid pair {piece!r}", "write KEY=VALUE;KEY=VALUE")
            pairs[key] = value
        ignore = pairs.pop("IgnoreUnknown", "") or "0"
        if ignore.lower() not in ("1", "true", "0", "false"):
            raise invalid_environment("CNI_ARGS", f"IgnoreUnknown={ignore!r} is not one of 1, true, 0, false")
        known = ("IP", "MAC", "GATEWAY")
        unknown = [key for key in pairs if key not in known]
        if unknown and ignore.lower() in ("0", "false"):
            raise invalid_environment("CNI_ARGS", f"unknown args {unknown}", "IgnoreUnknown=1 lets them pass")
        return {key: value for key, value in pairs.items() if value or key not in known}

    def valid_attachments(self) -> frozenset[tuple[str, str]]:
        """Return container and ifname of all attachments that GC shall keep. Raises CniError, code 7.

        Without a list GC would free what is in use, so its absence is refused. But null is the empty list, as libcni
        writes one. The older key is the one the
        specification had by mistake.
        """
        keys = ("cni.dev/valid-attachments", "cni.dev/attachments")
        given = {key.lower() for key in jsontext.decode(self.stdin)}
        key = next((key for key in keys if key in given), "")
        if not key:
            raise invalid_config(keys[0], "is missing", "an empty list says that no attachment is valid")
        return frozenset(_attachment(f) for f in self.config.objects(key))


def _attachment(f: Fields) -> tuple[str, str]:
    for key in ("containerID", "ifname"):
        if not f.string(key):
            raise f.invalid(key, "is missing")
    return f.string("containerID"), f.string("ifname")


def parse(environ: Mapping[str, str], read_stdin: Callable[[], bytes]) -> Request:
    """Check a call and return it. Raises CniError.

    VERSION is not for here: it reads no stdin.
    """
    verb = environ.get("CNI_COMMAND", "")
    _check_environment(environ, verb)
    try:
        stdin = read_stdin()
    except OSError as e:
        raise CniError(spec.IO_FAILURE, f"error reading from stdin: {e.strerror}") from None
    config = _decode(stdin)
    network = _network(config)
    if verb not in spec.REQUIRED:
        raise invalid_environment("CNI_COMMAND", f"unknown CNI_COMMAND: {verb}")
    # GC and STATUS are about no container, and what the environment says of one was not looked at.
    whose = (environ[name] if name in spec.REQUIRED[verb] else "" for name in ("CNI_CONTAINERID", "CNI_IFNAME"))
    attachment = Attachment(network, *whose)
    version = config_version(config, verb)
    return Request(
        verb=verb,
        attachment=attachment,
        netns=environ.get("CNI_NETNS", ""),
        args=environ.get("CNI_ARGS", ""),
        path=environ.get("CNI_PATH", ""),
        version=version,
        config=config,
        stdin=stdin,
        environ=environ,
    )


def _check_environment(environ: Mapping[str, str], verb: str) -> None:
    required = spec.REQUIRED.get(verb, ())
    missing = []
    for name in required:
        value = environ.get(name, "")
        if not value:
            missing.append(name)
        elif name == "CNI_CONTAINERID" and not spec.is_name(value):
            raise invalid_environment(name, "invalid characters in containerID", value)
        elif name == "CNI_IFNAME" and (fault := spec.ifname_fault(value)):
            raise invalid_environment(name, fault, value)
    if missing:
        raise CniError(spec.INVALID_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")


def _decode(stdin: bytes) -> Fields:
    try:
        raw = jsontext.decode(stdin)
    except ValueError as e:
        raise CniError(spec.DECODING_FAILURE, f"error unmarshall network config: {e}") from None
    if not isinstance(raw, dict):
        raise CniError(spec.DECODING_FAILURE, f"error unmarshall network config: expected object, got {type_name(raw)}")
    return Fields(raw)


def _network(config: Fields) -> str:
    name = config.raw("name")
    if name is not None and not isinstance(name, str):
        raise CniError(
            spec.DECODING_FAILURE, f"error unmarshall network config: name: expected string, got {type_name(name)}"
        )
    if not name:
        raise invalid_config("name", "missing network name")
    if not spec.is_name(name):
        raise invalid_config("name", "invalid characters found in network name", name)
    return name


def config_version(config: Fields, verb: str) -> str:
    """Return the configuration's cniVersion; raise CniError when no such version exists or it lacks the verb."""
    version = config.raw("cniVersion")
    if version is not None and not isinstance(version, str):
        raise CniError(
            spec.DECODING_FAILURE, f"decoding version from network config: expected string, got {type_name(version)}"
        )
    version = version or spec.ABSENT_VERSION
    if version not in spec.VERSIONS:
        raise CniError(
            spec.INCOMPATIBLE_VERSION,
            "incompatible CNI versions",
            f'config is "{version}", plugin supports {", ".join(spec.VERSIONS)}',
        )
    if verb in spec.SINCE and not spec.at_least(version, spec.SINCE[verb]):
        raise CniError(
            spec.INCOMPATIBLE_VERSION,
            f"config version does not allow {verb}",
            f"cniVersion is {version}, {verb} came with {spec.SINCE[verb]}",
        )
    return version
