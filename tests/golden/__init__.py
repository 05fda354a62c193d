"""Files that earlier releases wrote, and the program that had them write them. See make.py."""
