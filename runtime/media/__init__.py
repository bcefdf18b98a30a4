"""Video in and out: containers, image directories and pipes, through PyAV.

Reading: `video_reader` opens one of the sources (`container_source`, `image_folder`, `raw_source`);
`properties` reads what a container states about its video.
Writing: `OutputVideo` says what is wanted, `encoder_plan` maps it to an encoder and its settings,
`output_container` writes them. `video_writer` and `segmented_writer` are the two ways to use it.
"""
