"""Video in and out: containers, image directories and pipes, through PyAV.

`video_reader` and `video_writer` choose among containers, `image_folder` and `raw_pipe`.
`encoder_plan` maps what is wanted (`OutputVideo`) to an encoder and its settings, which
`output_container` carries out; `segmented_writer` uses both to write what can be resumed.
"""

import os

# SVT-AV1 reads it when it starts, and else reports its settings on standard error.
os.environ.setdefault("SVT_LOG", "1")
