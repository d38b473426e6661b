"""The sections of the configuration, one file each: an edit reruns only the stages that read it."""
