@0xbdf87d7bb8304e81;
# What Volt's schemas need of the file of this name that comes with Cap'n Proto (same identifiers): a copy, so that they compile where only the
# compiler is, with `capnp compile -I schema`. Where Cap'n Proto's own is installed it serves as well.

annotation namespace(file) :Text;
