"""Process management: signals, supervision, temporary folders, logs and machine checks."""
