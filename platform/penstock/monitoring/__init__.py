"""Logged predictions beside what the tables say now: did serving see what training sees?"""
