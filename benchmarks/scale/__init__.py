"""What reading outcomes costs with ten thousand jobs and with a million. Nothing here is a test."""
