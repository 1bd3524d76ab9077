"""The stage `student`: a cross-encoder learns the teacher's margins and is exported."""
