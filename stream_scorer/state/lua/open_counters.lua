-- Opens the counters: sets the epoch and the applied offsets that are missing. Existing values stay.
--
-- KEYS: head
-- ARGV: epoch to use if there is none | (source, first offset) per source
--
-- Returns the current epoch.
redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1])
for i = 2, #ARGV, 2 do redis.call('HSETNX', KEYS[1], 'm:' .. ARGV[i], ARGV[i + 1]) end
return redis.call('HGET', KEYS[1], 'epoch')
