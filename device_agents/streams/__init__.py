"""What comes out of a GStreamer pipeline: started, read block by block, dated by our clock."""
