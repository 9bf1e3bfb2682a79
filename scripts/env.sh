# shellcheck shell=bash disable=SC1090
# Sourced by bash or zsh, from any folder: `. scripts/env.sh`. After it `python` imports rclpy and the built package,
# and `vljepa` is a command. Invariant: it only sets the environment, installs nothing, and may be sourced again.

if [ -n "${ZSH_VERSION:-}" ]; then
  eval '_vljepa_file=${(%):-%x}'
  _vljepa_shell=zsh
else
  _vljepa_file=${BASH_SOURCE[0]}
  _vljepa_shell=bash
fi
_vljepa_root=$(cd "$(dirname "$_vljepa_file")/.." > /dev/null && pwd)
_vljepa_nounset=
case $- in *u*) _vljepa_nounset=1; set +u ;; esac # the set-up files of ROS and colcon read unset variables

_vljepa_prepend() { # VARIABLE FOLDER: put the folder in front, once
  eval "case \":\${$1:-}:\" in *\":$2:\"*) ;; *) export $1=\"$2\${$1:+:\$$1}\" ;; esac"
}

_vljepa_ros=$(bash "$_vljepa_root/scripts/find_ros")
if [ -n "$_vljepa_ros" ]; then
  . "$_vljepa_ros/setup.$_vljepa_shell"
fi
if [ -f "$_vljepa_root/.venv/bin/activate" ]; then
  . "$_vljepa_root/.venv/bin/activate"
fi
if [ -z "$_vljepa_ros" ]; then
  # ROS is in the virtual environment, as wheels.
  _vljepa_prepend AMENT_PREFIX_PATH "$_vljepa_root/.venv"
  _vljepa_prepend CMAKE_PREFIX_PATH "$_vljepa_root/.venv"
  _vljepa_prepend LD_LIBRARY_PATH "$_vljepa_root/.venv/lib"
  while IFS= read -r _vljepa_libs; do
    [ -z "$_vljepa_libs" ] || _vljepa_prepend LD_LIBRARY_PATH "$_vljepa_libs"
  done << END
$(find "$_vljepa_root/.venv/lib" -maxdepth 3 -type d -name 'ros_*.libs' 2> /dev/null)
END
fi
if [ -f "$_vljepa_root/.colcon/install/local_setup.$_vljepa_shell" ]; then
  . "$_vljepa_root/.colcon/install/local_setup.$_vljepa_shell"
else
  echo "vljepa_ros is not built yet: run $_vljepa_root/scripts/setup" >&2
fi

[ -z "$_vljepa_nounset" ] || set -u
unset -f _vljepa_prepend
unset _vljepa_file _vljepa_shell _vljepa_root _vljepa_nounset _vljepa_ros _vljepa_libs
