@0xbdf87d7bb8304e81;
# What Volt's schemas need of the file of this name that comes with Cap'n Proto (same identifiers), so that they load where that is not installed. Of
# the schemas it is the only one for which no code has to be generated: C++ finds Cap'n Proto's own header.

annotation namespace(file) :Text;
