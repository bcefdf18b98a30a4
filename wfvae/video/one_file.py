"""Keeping FFmpeg inside the file that it was given."""

import av

_LISTS = frozenset({"applehttp", "concat", "dash", "hls", "imf", "webm_dash_manifest"})
_SCRIPTS = frozenset({"avisynth", "lavfi", "vapoursynth"})
_SESSIONS = frozenset({"rtp", "rtsp", "sap", "sdp"})
_PARTS = frozenset({"mlv", "vobsub"})
"""Demuxers that open further files or addresses."""
_FORMATS = ",".join(sorted(av.formats_available - _LISTS - _SCRIPTS - _SESSIONS - _PARTS))


def one_file_options() -> dict[str, str]:
    """Returns options of a container that is read: the file may name no other file or address."""
    return {"protocol_whitelist": "file,crypto,data", "format_whitelist": _FORMATS}
