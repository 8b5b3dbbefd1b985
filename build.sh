#!/usr/bin/env bash
# Builds the executables, and runs everything that needs them. ./build.sh help lists the words.
set -euo pipefail
shopt -s inherit_errexit
umask 022
PATH=$PATH:/usr/sbin:/sbin # where an ordinary user's has no ip and nft

usage() {
    cat <<'EOF'
usage: ./build.sh [WORD]

  (none)            build the executables to dist/cni/
  plain             build them PyInstaller's ordinary way: slower to start, none of executables.spec's shortcuts
  demo              show the suite at work in namespaces of its own
  test [ARGS]       check style and types, then run the tests; ARGS go to pytest
  test all [ARGS]   also the tests that need more Debian packages, which are installed
  bench [ARGS]      time the executables against the reference's
  install [DIR]     put them into DIR, /opt/cni/bin if not given, beside whatever is there
  clean             remove build/ and dist/
  help              this text

What is missing on the machine is installed by apt-get when run as root on Debian, and named otherwise.
EOF
}

# Debian packages, needed for: building, the demo, the tests, all tests, the benchmark.
build_packages=(python3 python3-venv libpython3 binutils)
link_packages=(gcc libpython3-dev) # for the quicker start, see bootloader; a build works without them
demo_packages=(util-linux iputils-ping nftables)
test_packages=(util-linux iproute2 nftables iptables iputils-ping procps git strace)
all_packages=(
    containernetworking-plugins dbus-daemon python3-firewall python3-nftables
    podman runc containerd busybox-static
)
bench_packages=(util-linux iproute2 iptables containernetworking-plugins time iperf3)

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")"
    local word=${1-}
    shift || true
    case $word in
        '' | plain)
            build "${word:-lean}"
            echo "dist/cni holds $(runtime_folder)"
            ;;
        demo) demo "$@" ;;
        test) run_tests "$@" ;;
        bench) bench "$@" ;;
        install) install_to "$(cd "$OLDPWD" && realpath -m "${1-/opt/cni/bin}")" ;;
        clean) rm -rf build dist ;;
        help | -h | --help) usage ;;
        *) usage >&2 && exit 2 ;;
    esac
}

# --- building ---

# The extras of pyproject.toml that the virtual environment gets.
extras=(build)

# Build to dist/cni: "lean", "plain", or "any" when either will do. Does nothing when that is what is there. The packages
# named after the mode are installed together with those that a build needs.
build() {
    local packages=("${@:2}")
    if ! is_built "$1"; then
        packages+=("${build_packages[@]}")
        ! builds_with_debians || packages+=("${link_packages[@]}")
    fi
    require "${packages[@]}"
    (
        flock 9 # two builds at once would share build/ and .venv/
        make_venv "${extras[@]}"
        is_built "$1" || compile "${1/any/lean}"
    ) 9<.
}

compile() {
    local mode=$1 version
    version=$(version)
    [[ $mode == lean ]] || version+=.plain
    echo "building $version"
    rm -rf build
    if [[ $mode == lean ]] && ! { can_link && bootloader ".cnikit-$version"; }; then
        echo "with gcc and $(debian_name libpython3-dev) each call would take 5 ms less"
        rm -rf build/bootloader
    fi
    # Bytecode without column numbers loads faster, and tracebacks only show them beside source text.
    # The fixed hash seed orders constants, so that equal sources give equal files.
    CNIKIT_BUILD=$mode CNIKIT_VERSION=$version PYTHONNODEBUGRANGES=1 PYTHONHASHSEED=0 \
        PYI_LOG_LEVEL=WARN PYINSTALLER_CONFIG_DIR=build/cache \
        .venv/bin/python -m PyInstaller --workpath build/work --distpath build executables.spec
    mkdir -p dist
    rm -rf dist/cni
    mv build/cni dist/cni
}

# Make build/bootloader/run, what the plugins of a lean build begin with: PyInstaller's bootloader with a few words
# changed, bootloader.c, and the interpreter, linked statically. A shared one takes a tenth of a start to be mapped and
# relocated. It does not start itself a second time, which only served to find that library. It starts the interpreter's
# core only, see boot.py, and leaves the caller's locale alone. And it ignores whatever variables of its own (_PYI_...)
# the caller has: they are for the second start. Where this cannot be made PyInstaller's own will do, and each call takes
# 5 ms longer.
bootloader() {
    local runtime=$1 pin archive linking source=$PWD/build/pyinstaller
    pin=$(sed -n 's/.*"pyinstaller==\([^"]*\)".*/\1/p' pyproject.toml)
    archive=.venv/pyinstaller/pyinstaller-$pin.tar.gz
    [[ -f $archive ]] || .venv/bin/python -m pip download --quiet --no-deps --no-binary pyinstaller \
        --dest "${archive%/*}" "pyinstaller==$pin" || return
    mkdir -p "$source"
    tar -C "$source" --strip-components=1 -xzf "$archive" || return
    (cd "$source/bootloader/src" &&
        sed -i -e 's/reset_environment = false;/reset_environment = true;/' \
            -e '/mark as the parent\/launcher$/,/;$/s/PYI_PROCESS_LEVEL_PARENT_NEEDS_RESTART/PYI_PROCESS_LEVEL_MAIN/' \
            pyi_main.c &&
        sed -i 's/dlopen(dll_fullpath, /dlopen(NULL, /' pyi_dylib_python.c &&
        sed -i 's/config.configure_locale = 1;/config.configure_locale = 0;/' pyi_pyconfig.c &&
        sed -i 's/config_impl->install_signal_handlers = 1;/& config_impl->_init_main = 0;/' pyi_pyconfig_pep587.c) || return
    gcc -O2 -Wall -Wextra -Werror -I"$(configured INCLUDEPY)" -c bootloader.c -o build/bootloader.o || return
    linking="$PWD/build/bootloader.o -Wl,--whole-archive $(interpreters_archive) -Wl,--no-whole-archive"
    linking+=" -Wl,-Bstatic ${static_libraries[*]/#/-l} -Wl,-Bdynamic $(configured LIBS) $(configured SYSLIBS)"
    # Extension modules take their symbols from the executable (-E). RPATH, unlike RUNPATH, comes before LD_LIBRARY_PATH.
    linking+=" -no-pie -Wl,-E,--disable-new-dtags,-rpath,\$ORIGIN/$runtime"
    linking+=" -Wl,--wrap=_Py_Deepfreeze_Init,--wrap=_PyGC_Init"
    (cd "$source/bootloader" &&
        LDFLAGS=$linking "$OLDPWD/.venv/bin/python" ./waf distclean configure --static-zlib all) >build/bootloader.log 2>&1 ||
        { cat build/bootloader.log >&2 && return 1; }
    cp -r "$source"/PyInstaller/bootloader/Linux-* build/bootloader
}

static_libraries=(expat z) # that the interpreter's archive needs

# Tell whether the interpreter is Debian's, or will be, so that link_packages fit it.
builds_with_debians() {
    local python
    python=$(interpreter 2>/dev/null) || return 0
    [[ $python == /usr/bin/* ]]
}

# Tell whether a bootloader with the interpreter in it can be made: there is a compiler, and all that is linked.
can_link() {
    local library
    [[ -f $(interpreters_archive) ]] || return
    for library in "${static_libraries[@]}"; do
        [[ $(gcc -print-file-name="lib$library.a" 2>/dev/null) == /* ]] || return # it prints the name if it finds none
    done
}

interpreters_archive() {
    echo "$(configured LIBPL)/$(configured LIBRARY)"
}

# Print what the interpreter was configured with under this name.
configured() {
    local python=.venv/bin/python
    [[ -x $python ]] || python=$(interpreter)
    "$python" -Sc "import sysconfig; print(sysconfig.get_config_var('$1'))"
}

# Tell whether dist/cni was built from what is here now. Its manifest is written last.
is_built() {
    venv_is_fresh build || return
    local folder
    folder=dist/cni/.cnikit-$(version)
    [[ $1 != plain && -f $folder/executables ]] || [[ $1 != lean && -f $folder.plain/executables ]]
}

# Print the version and a digest of all that goes into a build, so that two builds never share a runtime folder.
version() {
    local version digest
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' cnikit/__init__.py)
    digest=$({
        .venv/bin/python -VV
        ! can_link || sha256sum "$(interpreters_archive)"
        echo .venv/lib/python3*/site-packages/{pyinstaller,pyroute2,netaddr,jeepney}*.dist-info
        find cnikit plugins ipam -name '*.py' | LC_ALL=C sort | xargs sha256sum build.sh executables.spec boot.py bootloader.c
    } | sha256sum)
    echo "$version+${digest:0:8}"
}

# Print the name of the runtime folder in dist/cni.
runtime_folder() {
    basename dist/cni/.cnikit-*
}

# Tell whether the virtual environment has an extra of pyproject.toml as it is now, and was made by this Python.
venv_is_fresh() {
    cmp -s ".venv/made-for-$1" <(venv_stamp 2>/dev/null)
}

venv_stamp() {
    .venv/bin/python -VV
    cat pyproject.toml
}

# Have these extras of pyproject.toml in the virtual environment, which is made if there is none.
make_venv() {
    local extra stale=()
    for extra; do
        venv_is_fresh "$extra" || stale+=("$extra")
    done
    ((${#stale[@]})) || return 0
    echo "making .venv for: ${stale[*]}"
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$(interpreter)" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$(IFS=, && echo "$*")]"
    for extra; do
        venv_stamp >".venv/made-for-$extra"
    done
}

# Print the Python to build with. Debian's is optimized (PGO, LTO) beyond what pyenv and the like do by default.
interpreter() {
    local candidate
    for candidate in /usr/bin/python3 python3 python3.{14,13,12,11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11 or newer is needed" >&2
    return 1
}

# --- what must be on the machine ---

# Have these Debian packages, or what they are needed for, on the machine: install them, or say how and stop. All that
# are missing are said at once. Where only link_packages are missing, or cannot be had, it goes on without them.
require() {
    local package name missing=() needed=()
    for package; do
        ! has "$package" >/dev/null 2>&1 || continue
        name=$(debian_name "$package")
        [[ " ${missing[*]} " == *" $name "* ]] || missing+=("$name")
        [[ " ${link_packages[*]} " == *" $package "* ]] || needed+=("$name")
    done
    ((${#missing[@]})) || return 0
    if [[ $EUID != 0 ]] || ! command -v apt-get >/dev/null; then
        ((${#needed[@]})) || return 0
        echo "missing: apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    echo "installing ${missing[*]}"
    install_packages "${missing[@]}" || ((${#needed[@]} == 0)) || install_packages "${needed[@]}"
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    local install=(apt-get install -qq --no-install-recommends "$@")
    # Packages that see no systemd do not start their services.
    # shellcheck disable=SC2016  # the inner shell expands $@
    [[ ! -d /run/systemd/system ]] ||
        install=(unshare --mount sh -c 'mount -t tmpfs none /run/systemd && exec "$@"' sh "${install[@]}")
    "${install[@]}" >/dev/null 2>&1 || { apt-get update -qq && "${install[@]}"; }
}

# Tell whether what we want of a package is there, wherever it came from.
has() {
    case $1 in
        python3) interpreter ;;
        python3-venv) "$(interpreter)" -c 'import ensurepip, venv' ;;
        libpython3) "$(interpreter)" -c 'import ctypes, sysconfig; ctypes.CDLL(sysconfig.get_config_var("INSTSONAME"))' ;;
        libpython3-dev) can_link ;;
        binutils) command -v objcopy && command -v objdump && command -v strip ;;
        util-linux) command -v unshare ;;
        iproute2) command -v ip ;;
        nftables) command -v nft ;;
        iputils-ping) command -v ping ;;
        procps) command -v sysctl ;;
        containernetworking-plugins) [[ -x /usr/lib/cni/bridge ]] ;;
        busybox-static) command -v busybox && ! ldd "$(command -v busybox)" ;;
        python3-firewall | python3-nftables) /usr/bin/python3 -c "import ${1#python3-}" ;;
        *) command -v "$1" ;;
    esac
}

# Print what Debian calls it: the packages of libpython have the Python version in their names. libpython3-dev depends on
# both of Debian's own python3, which there will be where there is no interpreter yet.
debian_name() {
    local python
    case $1 in
        libpython3*)
            if python=$(interpreter 2>/dev/null); then
                echo "${1/3/$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}"
            else
                echo libpython3-dev
            fi
            ;;
        *) echo "$1" ;;
    esac
}

# Fetch the packages of other suites that tests/packages lists, and unpack their programs into the user's cache; the
# machine's own packages stay as they are. Those that cannot be had are named, and the tests with them are skipped.
fetch_packages() {
    local path sum folder
    while read -r path sum; do
        folder=${XDG_CACHE_HOME:-${HOME-}/.cache}/cnikit/$(basename "$path" .deb)
        [[ -d $folder ]] || fetch "$path" "$sum" "$folder" || echo "cannot fetch $path: tests with it are skipped" >&2
    done < <(grep -v '^#' tests/packages)
}

# Fetch a package by its path on a mirror, and unpack its programs into a folder, which appears whole or not at all.
fetch() {
    local path=$1 sum=$2 folder=$3 unpacked
    [[ $path == *"_$(dpkg --print-architecture).deb" ]] || return
    mkdir -p "${folder%/*}" && unpacked=$(mktemp -d "${folder%/*}/.new-XXXXXX") || return
    download "$path" "$sum" "$unpacked/deb" && chmod 755 "$unpacked" &&
        dpkg-deb --fsys-tarfile "$unpacked/deb" | tar -x -C "$unpacked" --strip-components=3 ./usr/bin &&
        rm "$unpacked/deb" && mv -T "$unpacked" "$folder" || { rm -rf "$unpacked" && return 1; }
}

# Download a file from one of the mirrors that apt uses.
download() {
    local mirror
    # shellcheck disable=SC2016  # apt-get expands $(REPO_URI)
    for mirror in $(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | sort -u); do
        echo "fetching $mirror$1"
        ! /usr/lib/apt/apt-helper -o Acquire::Retries=0 -o Acquire::http::Timeout=20 download-file "$mirror$1" "$3" \
            "SHA256:$2" >/dev/null 2>&1 || return 0
    done
    return 1
}

# --- running ---

demo() {
    build any "${demo_packages[@]}"
    exec .venv/bin/python -m cnikit.cli.demo "$@"
}

run_tests() {
    local packages=("${test_packages[@]}") marked=(-m "not all") fetch=:
    if [[ ${1-} == all ]]; then
        packages+=("${all_packages[@]}")
        marked=(-m "not sample") fetch=fetch_packages
        shift
    fi
    extras+=(test)
    build any "${packages[@]}"
    "$fetch"
    .venv/bin/ruff check
    .venv/bin/ruff format --check
    .venv/bin/mypy
    in_namespaces .venv/bin/python -m pytest "${marked[@]}" "$@"
}

bench() {
    build any "${bench_packages[@]}"
    in_namespaces .venv/bin/python -m bench.bench "$@"
}

# Run a command with networks, /run and /var/lib/cni of its own; the machine's are out of its reach.
in_namespaces() {
    local ordinary_user=()
    ((EUID == 0)) || ordinary_user=(--map-root-user)
    # shellcheck disable=SC2016  # the inner shell expands $@
    unshare "${ordinary_user[@]}" --net --mount --propagation private sh -euc '
        mount -t tmpfs none /run
        mkdir /run/netns /run/var-lib
        # /var/lib/cni need not exist, so /var/lib is made anew with links to all else that is there.
        mount --rbind /var/lib /run/var-lib
        mount -t tmpfs none /var/lib
        ln -s /run/var-lib/* /var/lib
        rm -f /var/lib/cni
        ip link set lo up
        exec "$@"' sh "$@"
}

# --- installing ---

# Put the executables into a folder. Every name appears there whole or not at all, and executables in use, of this
# suite's previous version or of another suite, keep working.
install_to() {
    build any
    local dir=$1 runtime path count=0
    runtime=$(runtime_folder)
    mkdir -p "$dir"
    exec 9<"$dir"
    flock 9
    rm -rf "$dir"/.tmp-cnikit-* # of an install that was killed
    install_runtime "$dir" "$runtime"
    for path in dist/cni/*; do
        cp "$path" "$dir/.tmp-cnikit-executable"
        mv -fT "$dir/.tmp-cnikit-executable" "$dir/${path##*/}"
        count=$((count + 1))
    done
    echo "installed $count executables and $runtime in $dir"
    remove_old_runtimes "$dir" "$runtime"
}

# Equal names mean equal contents, so a runtime folder that is there already stays, unless it was tampered with.
install_runtime() {
    local dir=$1 runtime=$2
    if ! diff -qr "dist/cni/$runtime" "$dir/$runtime" >/dev/null 2>&1; then
        cp -R "dist/cni/$runtime" "$dir/.tmp-cnikit-runtime"
        [[ ! -e $dir/$runtime ]] || mv -T "$dir/$runtime" "$dir/.tmp-cnikit-broken"
        mv -T "$dir/.tmp-cnikit-runtime" "$dir/$runtime"
        rm -rf "$dir/.tmp-cnikit-broken"
    fi
    touch "$dir/$runtime" # the age of a runtime folder is when it was last installed
}

# Remove the runtime folders of past versions but the last one, from which running calls may still import.
remove_old_runtimes() {
    local dir=$1 runtime=$2 old
    find "$dir" -maxdepth 1 -name '.cnikit-*' ! -name "$runtime" -printf '%T@ %f\n' | sort -rn | tail -n +2 |
        while read -r _ old; do
            rm -rf "${dir:?}/$old"
            echo "removed $old"
        done
}

# tests/test_build.py sources this file for its functions.
[[ ${BASH_SOURCE[0]} != "$0" ]] || main "$@"
