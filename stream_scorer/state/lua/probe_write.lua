-- A small write that changes no row, by every command of `apply_rows`. Redis does not roll back a script: a user who may
-- run only some of the commands would append entries without advancing the applied offsets.
--
-- KEYS: probe.   ARGV: after how many milliseconds Redis forgets it.
local key, call = KEYS[1], redis.call
call('SET', key, '')
call('APPEND', key, 'x')
call('GETRANGE', key, 0, call('STRLEN', key) - 1)
call('GET', key)
call('DEL', key)
call('SADD', key, 0)
call('SISMEMBER', key, 0)
call('DEL', key)
call('SET', key, '', 'PX', ARGV[1])
