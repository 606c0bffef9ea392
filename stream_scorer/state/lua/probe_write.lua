-- A small write that changes no row.
-- KEYS: probe.   ARGV: after how many milliseconds Redis forgets it.
redis.call('SET', KEYS[1], '', 'PX', ARGV[1])
