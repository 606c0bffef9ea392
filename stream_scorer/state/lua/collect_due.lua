-- Moves the windows that are due to the changed windows.
--
-- KEYS: due windows, sorted by their start | changed windows with their change counters
-- ARGV: latest start that is due
--
-- Returns the number of windows.
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
for _, window in ipairs(due) do
  redis.call('ZREM', KEYS[1], window)
  redis.call('HINCRBY', KEYS[2], window, 1)
end
return #due
