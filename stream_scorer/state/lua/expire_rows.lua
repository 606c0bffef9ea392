-- Deletes the rows whose entries and panes are all older than a given time, and remembers their keys for a while.
--
-- KEYS: expired rows | rows
-- ARGV: event time before which no reader looks (ms) | how long to remember deleted keys (ms)
--
-- Returns the number of deleted rows.
local before, deleted = tonumber(ARGV[1]), 0
for k = 2, #KEYS do
  -- Look at the last entry first: it decides for nearly all rows, without reading the whole row.
  local from = TIME_START - ENTRY_BYTES
  local last = redis.call('GETRANGE', KEYS[k], from, from + FIELD_BYTES - 1)
  if #last == FIELD_BYTES and struct.unpack(FIELD_PATTERN, last) < before then
    local row, old = redis.call('GET', KEYS[k]), true
    for at = 1, #row - ENTRY_BYTES + 1, ENTRY_BYTES do
      local time, _, _, kind = struct.unpack(ENTRY_PATTERN, row, at)
      -- The time of a pane is its start; the kind holds how much later its latest entry is. A header has no time.
      if kind <= PANE then time = time + math.floor((PANE - kind) / PANE_CODES) end
      if kind ~= HEADER and time >= before then
        old = false
        break
      end
    end
    if old then
      redis.call('UNLINK', KEYS[k])
      redis.call('SADD', KEYS[1], KEYS[k])
      deleted = deleted + 1
    end
  end
end
if deleted > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return deleted
