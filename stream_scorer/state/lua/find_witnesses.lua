-- Finds out which of some missing rows have a witness in any of some periods. It costs one look-up per row and period.
--
-- KEYS: a witness set per row and period, row by row
-- ARGV: number of periods | a hash of the row key per row
--
-- Returns the numbers of the rows that have a witness, counted from 0.
local periods, found = tonumber(ARGV[1]), {}
for i = 2, #ARGV do
  for p = 1, periods do
    if redis.call('SISMEMBER', KEYS[(i - 2) * periods + p], ARGV[i]) == 1 then
      found[#found + 1] = i - 2
      break
    end
  end
end
return found
