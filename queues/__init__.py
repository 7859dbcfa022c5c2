"""What is promised for a job and what becomes of it: contracts, lifecycle, outcomes, scheduler."""
