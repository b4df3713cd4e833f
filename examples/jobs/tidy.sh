#!/bin/sh
# Says that it ran.
date +%s >>/srv/demo/tidied
