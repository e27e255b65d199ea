# Sourced by the system tests: a small RecBole-like log with structure to learn, made by awk.
# make_tiny_log DIR USERS: DIR/tiny.inter, DIR/tiny.item. Users keep to one of four genres, three times in four.
make_tiny_log() {
  mkdir -p "$1"
  awk -v users="$2" 'BEGIN {
    print "user_id:token\titem_id:token\ttimestamp:float"
    state = 7
    for (u = 1; u <= users; ++u) {
      length_of_user = 8 + u % 17
      for (t = 0; t < length_of_user; ++t) {
        state = (state * 69069 + 1) % 4294967296
        pick = int(state / 65536)
        genre = (pick % 4 == 0) ? int(pick / 4) % 4 : u % 4
        print "u" u "\ti" (genre * 12 + int(pick / 64) % 12) "\t" (1000 + t * 10)
      }
    }
  }' > "$1/tiny.inter"
  awk 'BEGIN {
    print "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    split("Drama Comedy Action Horror", genre, " ")
    for (i = 0; i < 48; ++i) print "i" i "\tTitle" i "\t" (1980 + i % 15) "\t" genre[int(i / 12) + 1]
  }' > "$1/tiny.item"
}
