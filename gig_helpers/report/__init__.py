"""What the chapters show: studies of many pictures, statistics, examples, figures."""
