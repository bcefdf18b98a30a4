"""Videos as data: how stored pixels are read, names of video files, and procedural clips."""
