"""Explains CRIU's log: the watch that stopped CRIU, the reason, and the command that helps.

`lines` reads a log of any size and takes the quoting of the engines away. `messages` has every
message of fsnotify.c and irmap.c, `other_causes` the messages about other causes.
`reader` collects the facts of one run of CRIU from the lines. `engines` guesses the engine and has
its commands, `paths` looks for the path of an inode, and `explanation` puts it together.
"""
